"""Classification: from a picture and noise back to the code of its label, many times per picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from msf.codes import LabelCode
from msf.config import FlowName, MethodName
from msf.data import prepare_images
from msf.uncertainty import Decision, Prediction, check_decision, make_prediction
from msf.velocity import VelocityNetwork, semantic_field
from msf_kernels.sampling import CapturedTrajectory, Mean, MeanEntropy, Moments, Statistic, StopRule, Votes, draw
from msf_kernels.shapes import ImageBatch, SemanticBatch
from msf_kernels.solvers import get_tableau, integrate, uniform_grid

# Prepared pictures that exist at once; a split of any size is worked off in parts of this many bytes.
_PREPARED_BYTES = 1 << 28


class ClassifyTrajectory:
    """What one micro-batch does: integrate t = 1 -> 0 and compare the semantic map with the codes.

    Args:
        network: Velocity network on joint states.
        code: The code to compare with.
        dtype: Dtype in which the network wants its input.
        n_steps: Steps of the solver.
        method: Name of a fixed-step method.
        flow: `joint`: both streams move, the picture dissolving into noise. `conditional`: the picture is held.
        read_probability: Also read the code's class probabilities.
    """

    def __init__(
        self,
        network: VelocityNetwork,
        code: LabelCode,
        *,
        dtype: torch.dtype,
        n_steps: int,
        method: MethodName,
        flow: FlowName,
        read_probability: bool,
    ) -> None:
        """Choose grid and tableau."""
        self.network = network
        # A second copy of the state only where the network reads another dtype.
        self.cast_to = None if dtype == torch.float32 else dtype
        self.code = code
        self.time_grid = uniform_grid(n_steps, start=1.0, end=0.0)
        self.tableau = get_tableau(method)
        self.flow = flow
        self.read_probability = read_probability
        self.nfe = 0

    def __call__(self, image: ImageBatch, noise: SemanticBatch) -> dict[str, Tensor]:
        """Return distance, pixel votes and, if wanted, probability of each item; each [B, n_classes]."""
        semantic = self.recover(image, noise)
        distance, pixel_votes = self.code.distance(semantic)
        readout = {"distance": distance, "pixel_votes": pixel_votes}
        if self.read_probability:
            readout["probability"] = self.code.probability(semantic)
        return readout

    def recover(self, image: ImageBatch, noise: SemanticBatch) -> SemanticBatch:
        """Return the semantic map at t = 0: [B, K, H, W]."""
        if self.flow == "conditional":
            field = semantic_field(self.network, image)
            solution = integrate(field, noise, self.time_grid, self.tableau, cast_to=self.cast_to)
            semantic = solution.state
        else:
            z_start = torch.cat([image, noise], dim=1)
            solution = integrate(self.network, z_start, self.time_grid, self.tableau, cast_to=self.cast_to)
            semantic = solution.state[:, image.shape[1] :]
        self.nfe = solution.nfe
        return semantic


def classify(
    network: VelocityNetwork,
    code: LabelCode,
    images: Tensor,
    *,
    image_size: int,
    image_channels: int,
    device: torch.device,
    dtype: torch.dtype,
    n_samples: int,
    n_steps: int,
    method: MethodName,
    flow: FlowName,
    seed: int,
    noise: Tensor | None = None,
    micro_batch: int | None = None,
    decision: Decision = "distance",
    stop: StopRule | None = None,
    antithetic: bool = False,
    progress: Callable[[int, int], None] | None = None,
    keep_samples: bool = False,
) -> Prediction:
    """Classify pictures with a velocity network and a code; `MedSymmFlow.classify` is the public form.

    Probabilities are read from the code (`mean_code`) where one evaluation estimates the posterior mean of the code
    and that mean determines the class probabilities: one Euler step, affinely independent codes. Otherwise they are
    votes, because a state after several steps is one possible answer, not a mean. After one step with dependent codes
    votes are all that is left, and they are not probabilities: every draw estimates the same mean.

    Args:
        network: Velocity network on joint states; on `device`.
        code: Code that the network was trained with.
        images: Pictures, in any form that `prepare_images` takes; [N, ...].
        image_size: Height and width that the network works at.
        image_channels: Channels of the pictures in the joint state.
        device: Where the network is.
        dtype: Dtype in which the network wants its input.
        n_samples: Noise draws per picture; at most, with `stop`.
        n_steps: Steps of the solver.
        method: Name of a fixed-step method.
        flow: `joint` or `conditional`.
        seed: Seed of the noise.
        noise: Noise to use instead; [N, n_samples, K, image_size, image_size], float.
        micro_batch: Samples evaluated at once.
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
    noise_shape = (code.n_channels, image_size, image_size)
    if noise is not None:
        _check_noise(noise, (len(images), n_samples, *noise_shape))
    is_posterior_mean = n_steps == 1 and method == "euler" and code.is_affinely_independent
    trajectory = ClassifyTrajectory(
        network,
        code,
        dtype=dtype,
        n_steps=n_steps,
        method=method,
        flow=flow,
        read_probability=is_posterior_mean,
    )
    statistics: dict[str, Statistic] = {
        "distance": Moments("distance"),
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
            prepared,
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


def _check_noise(noise: Tensor, shape: tuple[int, ...]) -> None:
    if not noise.is_floating_point():
        raise TypeError(f"noise must be floating point; got {noise.dtype}")
    if tuple(noise.shape) != shape:
        raise ValueError(f"noise must be [N, n_samples, K, H, W] = {list(shape)}; got {list(noise.shape)}")


def _shifted(progress: Callable[[int, int], None], n_before: int, n_total: int) -> Callable[[int, int], None]:
    return lambda n_done, _n_part: progress(n_before + n_done, n_total)
