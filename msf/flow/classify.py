"""Classification: from a picture and noise back to the code of its label, many times per picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from msf.config import ReadoutName
from msf.data import prepare_images
from msf.flow.solver import FlowSolver, check_noise
from msf.judge.uncertainty import Decision, Prediction, check_decision, make_prediction
from msf_kernels.sampling import CapturedTrajectory, Mean, MeanEntropy, MeanVariance, Statistic, StopRule, Votes, draw
from msf_kernels.shapes import ImageBatch, SemanticBatch

# Prepared pictures that exist at once; a split of any size is worked off in parts of this many bytes.
_PREPARED_BYTES = 1 << 28


@dataclass(frozen=True)
class Readout:
    """How a recovered semantic map is compared with the classes.

    Args:
        name: What is compared; see `MedSymmFlow.classify`.
        distance: From [B, K, H, W] to the distance to each class and each class's share of the pixels, both
            [B, n_classes].
        probability: From [B, K, H, W] to class probabilities [B, n_classes], where a map is a posterior mean that
            determines them; else None.
    """

    name: ReadoutName
    distance: Callable[[SemanticBatch], tuple[Tensor, Tensor]]
    probability: Callable[[SemanticBatch], Tensor] | None = None


class ClassifyTrajectory:
    """What one micro-batch does: follow the flow to t = 0 and compare the semantic map with the classes.

    Args:
        solver: Leads from picture and noise to the semantic map.
        readout: The comparison.
    """

    def __init__(self, solver: FlowSolver, readout: Readout) -> None:
        """Keep what a micro-batch needs."""
        self.solver = solver
        self.readout = readout

    @property
    def nfe(self) -> int:
        """Evaluations of the network per sample."""
        return self.solver.nfe

    def __call__(self, image: ImageBatch, noise: SemanticBatch) -> dict[str, Tensor]:
        """Return distance, pixel votes and, if wanted, probability of each item; each [B, n_classes]."""
        semantic = self.solver.to_code(image, noise)
        distance, pixel_votes = self.readout.distance(semantic)
        values = {"distance": distance, "pixel_votes": pixel_votes}
        if self.readout.probability is not None:
            values["probability"] = self.readout.probability(semantic)
        return values


def classify(
    solver: FlowSolver,
    readout: Readout,
    images: Tensor,
    *,
    image_size: int,
    image_channels: int,
    encode: Callable[[ImageBatch], Tensor],
    noise_shape: tuple[int, int, int],
    device: torch.device,
    n_samples: int,
    seed: int,
    noise: Tensor | None = None,
    micro_batch: int | None = None,
    latents: Tensor | None = None,
    decision: Decision = "distance",
    stop: StopRule | None = None,
    antithetic: bool = False,
    progress: Callable[[int, int], None] | None = None,
    keep_samples: bool = False,
) -> Prediction:
    """Classify pictures with a flow and a read-out; `MedSymmFlow.classify` is the public form.

    Probabilities are read from the code (`mean_code`) where one evaluation estimates the posterior mean of the code
    and that mean determines the class probabilities: one Euler step, affinely independent codes. Otherwise they are
    votes, because a state after several steps is one possible answer, not a mean. After one step with dependent codes
    votes are all that is left, and they are not probabilities: every draw estimates the same mean.

    Args:
        solver: Leads from picture and noise to the semantic map; its network is on `device`.
        readout: Comparison with the classes; gives probabilities only where they may be read from one evaluation.
        images: Pictures, in any form that `prepare_images` takes; [N, ...].
        image_size: Height and width of the prepared pictures.
        image_channels: Channels of the prepared pictures.
        encode: Turns prepared pictures into the image part of the joint state; called once per picture.
        noise_shape: Shape (K, H, W) of the semantic part of the joint state.
        device: Where the network is.
        n_samples: Noise draws per picture; at most, with `stop`.
        seed: Seed of the noise.
        noise: Noise to use instead; [N, n_samples, K, H, W], float.
        micro_batch: Samples evaluated at once.
        latents: Image parts of the joint states of all pictures, to use instead of encoding them.
        decision: Rule for the label; see `Prediction`.
        stop: Rule that ends the sampling of settled pictures.
        antithetic: Draw noise in pairs of opposite sign.
        progress: Called as `progress(n_done, n_total)`, in samples.
        keep_samples: Keep each draw's distances.

    Returns:
        The prediction, on the device of `images`.

    Raises:
        TypeError: A tensor of the wrong dtype.
        ValueError: A shape or a number out of range; see `prepare_images` and `msf_kernels.sampling.draw`.

    Numerics:
        The noise of a picture is keyed by its own content, so its prediction does not depend on its position or on
        what else is classified; equal pictures get equal predictions. Bits are equal for an equal micro-batch.
    """
    check_decision(decision)
    if len(images) == 0:
        raise ValueError("images must hold at least one picture; got none")
    if latents is not None and len(latents) != len(images):
        raise ValueError(f"latents must be one per picture, N = {len(images)}; got {len(latents)}")
    if noise is not None:
        check_noise(noise, "[N, n_samples, K, H, W]", (len(images), n_samples, *noise_shape))
    is_posterior_mean = readout.probability is not None
    trajectory = ClassifyTrajectory(solver, readout)
    statistics: dict[str, Statistic] = {
        "distance": MeanVariance("distance"),
        "votes": Votes("distance"),
        "pixel_votes": Mean("pixel_votes"),
    }
    if is_posterior_mean:
        statistics |= {"probability": Mean("probability"), "entropy": MeanEntropy("probability")}

    captured = CapturedTrajectory(trajectory)
    per_part = max(1, _PREPARED_BYTES // (4 * image_channels * image_size**2))
    parts = []
    for first in range(0, len(images), per_part):
        rows = slice(first, first + per_part)
        prepared = prepare_images(images[rows], image_size, image_channels)
        result = draw(
            captured,
            encode(prepared) if latents is None else latents[rows],
            n_samples,
            noise_shape,
            seed=seed,
            input_key=None if noise is not None else content_key(prepared),
            noise=None if noise is None else noise[rows],
            antithetic=antithetic,
            statistics=statistics,
            keep_samples=("distance",) if keep_samples else False,
            stop=stop,
            micro_batch=micro_batch,
            device=device,
            progress=None if progress is None else _shifted(progress, first * n_samples, len(images) * n_samples),
        )
        # Where memory was short once it will be again.
        micro_batch = result.micro_batch
        parts.append(result)

    def joined(statistic: str, name: str) -> Tensor:
        return torch.cat([part.statistics[statistic][name] for part in parts]).to(images.device)

    return make_prediction(
        class_distance=joined("distance", "mean"),
        distance_std=joined("distance", "variance").sqrt(),
        votes=joined("votes", "share"),
        pixel_votes=joined("pixel_votes", "mean"),
        n_samples=n_samples if stop is None else torch.cat([part.n_samples for part in parts]).to(images.device),
        nfe=trajectory.nfe,
        micro_batch=parts[-1].micro_batch,
        decision=decision,
        readout=readout.name,
        code_probability=joined("probability", "mean") if is_posterior_mean else None,
        code_entropy=joined("entropy", "mean") if is_posterior_mean else None,
        sample_distance=torch.cat([part.samples["distance"] for part in parts]) if keep_samples else None,
    )


def content_key(prepared: ImageBatch) -> Tensor:
    """Return a number per picture that is a function of its values alone: int64 [N], in [0, 2^31), on the CPU.

    Two different pictures share a key, and then their noise, with probability 2^-31.
    """
    pictures = prepared.cpu().contiguous().numpy()
    digests = [hashlib.blake2b(picture.tobytes(), digest_size=4).digest() for picture in pictures]
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)


def _shifted(progress: Callable[[int, int], None], n_before: int, n_total: int) -> Callable[[int, int], None]:
    return lambda n_done, _n_part: progress(n_before + n_done, n_total)
