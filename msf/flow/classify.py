"""Classification: from a picture and noise back to the code of its label, many times per picture."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msf.autoencoder.batches import fixed_batches
from msf.codes.label_codes import project_on_simplex
from msf.config import ClassifySettings
from msf.data import prepare_images, settle_value_range
from msf.data.arrays import as_tensor, listed, rows_not_finite
from msf.flow.joint_space import JointSpace
from msf.flow.kept import KeptTrajectories
from msf.flow.readout import Readout
from msf.flow.solver import FlowSolver, check_noise
from msf.judge.uncertainty import Draws, InvalidPredictionError, Prediction, make_prediction
from msf.network.inference import precision_of
from msf_kernels.sampling import (
    CapturedTrajectory,
    InvalidSamplesError,
    Mean,
    MeanEntropy,
    MeanVariance,
    SamplingResult,
    SettledVote,
    Statistic,
    Votes,
    draw,
)
from msf_kernels.shapes import ImageBatch, SemanticBatch

# Prepared pictures that exist at once; a split of any size is worked off in parts of this many bytes.
_PREPARED_BYTES = 1 << 28
READ_OUT_ROWS = 16  # maps that are compared at once where the network may be asked for any number


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
    def is_batch_invariant(self) -> bool:
        """Whether an item's bits are the same in every batch: where the network promises it and nothing is decoded."""
        return self.solver.network.is_batch_invariant and not self.readout.is_decoding

    @property
    def micro_batch(self) -> int | None:
        """Samples that the network wants to be evaluated at once; None: no matter."""
        return self.solver.network.micro_batch

    @property
    def nfe(self) -> int:
        """Evaluations of the network per sample."""
        return self.solver.nfe

    def __call__(self, image: ImageBatch, noise: SemanticBatch) -> dict[str, Tensor]:
        """Return distance, pixel votes and, if wanted, class weights and probability of each; all [B, n_classes]."""
        semantic = self.solver.to_code(image, noise)
        if not self.is_batch_invariant:
            return self._compare(semantic)
        # PyTorch's sums of few rows need not have the order of many; comparing a few more maps costs next to nothing.
        parts = [self._compare(part) for part, _ in fixed_batches(semantic, READ_OUT_ROWS)]
        return {name: torch.cat([part[name] for part in parts])[: len(semantic)] for name in parts[0]}

    def _compare(self, semantic: SemanticBatch) -> dict[str, Tensor]:
        distance, pixel_votes = self.readout.distance(semantic)
        values = {"distance": distance, "pixel_votes": pixel_votes}
        if self.readout.weights is not None:
            values["weights"] = self.readout.weights(semantic)
            values["probability"] = project_on_simplex(values["weights"])
        return values


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest:
    """What a caller of `MedSymmFlow.classify` wants, as it travels to the engine.

    Args:
        images: Pictures, in any form that `prepare_images` takes; [N, ...], N >= 1.
        settings: How they are classified.
        seed: Seed of the noise.
        noise: Noise to use instead; [N, n_samples, K, H, W], float.
        latents: Image parts of the joint states of all pictures, to use instead of encoding them.
        progress: Called as `progress(n_done, n_total)`, in samples.

    Raises:
        ValueError: No picture, or another number of latents.
    """

    images: Tensor
    settings: ClassifySettings
    seed: int = 0
    noise: Tensor | None = None
    latents: Tensor | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the network."""
        for name in ("images", "noise", "latents"):
            if name == "images" or getattr(self, name) is not None:
                object.__setattr__(self, name, as_tensor(name, getattr(self, name)))
        if len(self.images) == 0:
            raise ValueError("images must hold at least one picture; got none")
        if self.latents is not None and len(self.latents) != len(self.images):
            raise ValueError(f"latents must be one per picture, N = {len(self.images)}; got {len(self.latents)}")
        for name in ("noise", "latents"):
            given = getattr(self, name)
            if given is not None and given.is_floating_point() and (rows := rows_not_finite(given)):
                raise ValueError(f"{name} must be finite; got NaN or infinite values for {listed('picture', rows)}")

    def part(self, rows: slice, **fields: Any) -> ClassifyRequest:
        """Return the request for some of the pictures, with some settings, and progress in terms of all."""
        n_samples, progress = self.settings.n_samples, self.progress
        before, total = rows.start * n_samples, len(self.images) * n_samples
        return ClassifyRequest(
            images=self.images[rows],
            settings=dataclasses.replace(self.settings, **fields),
            seed=self.seed,
            noise=None if self.noise is None else self.noise[rows],
            latents=None if self.latents is None else self.latents[rows],
            progress=None if progress is None else lambda n_done, _n_part: progress(before + n_done, total),
        )


def classify(
    request: ClassifyRequest,
    solver: FlowSolver,
    space: JointSpace,
    device: torch.device,
    trajectories: KeptTrajectories,
) -> Prediction:
    """Classify pictures with a flow; `MedSymmFlow.classify` is the public form.

    Probabilities are read from the code (`mean_code`) where one evaluation estimates the posterior mean of the code
    and that mean determines the class probabilities: one Euler step, affinely independent codes. The weights of the
    classes are averaged over the draws and projected once. Otherwise they are votes, because a state after several
    steps is one possible answer, not a mean. After one step with dependent codes votes are all that is left, and they
    are not probabilities: every draw estimates the same mean.

    Args:
        request: Pictures and settings.
        solver: Leads from picture and noise to the semantic map; its network is on `device`.
        space: Between pictures and joint states, and the read-outs.
        device: Where network and autoencoder are.
        trajectories: Those of earlier calls of the flow.

    Returns:
        The prediction, on the device of the pictures.

    Raises:
        TypeError: A tensor of the wrong dtype.
        ValueError: A shape or a number out of range; see `prepare_images` and `msf_kernels.sampling.draw`.
        InvalidPredictionError: NaN or infinite values for some pictures; it holds the predictions of the others.

    Numerics:
        The noise of a picture is keyed by its own content, so its prediction does not depend on its position or on
        what else is classified; equal pictures get equal predictions. Bits are equal for an equal micro-batch, and for
        any where the network is batch-invariant.
    """
    images, settings, stop = request.images, request.settings, request.settings.stop
    if request.noise is not None:
        wanted = (len(images), settings.n_samples, *space.semantic_shape)
        check_noise(request.noise, "[N, n_samples, K, H, W]", wanted)
    if space.is_per_pixel and (settings.stop is not None or settings.keep_samples):
        raise ValueError("where pixels have classes, stop must be None and keep_samples False")
    readout = space.readout(settings.readout, device, is_mean=solver.is_single_evaluation)
    is_posterior_mean = readout.weights is not None
    # Decoded maps go through the autoencoder, whose weights are its owner's and may be moved.
    captured = trajectories.of(
        solver, readout, lambda: ClassifyTrajectory(solver, readout), is_fixed=not space.decodes(readout.name)
    )
    statistics: dict[str, Statistic] = {
        "distance": MeanVariance("distance"),
        "votes": Votes(stop.reads, stop.rule, stop.n_classes) if isinstance(stop, SettledVote) else Votes("distance"),
        "pixel_votes": Mean("pixel_votes"),
    }
    if is_posterior_mean:
        statistics |= {
            "weights": Mean("weights"),
            "probability": Mean("probability"),
            "entropy": MeanEntropy("probability"),
        }
    per_part = max(1, _PREPARED_BYTES // (4 * space.image_channels * space.image_size**2))
    value_range = settle_value_range(images, space.image_channels, settings.value_range)
    micro_batch, parts = settings.micro_batch, []
    for first in range(0, len(images), per_part):
        asked = request.part(slice(first, first + per_part), micro_batch=micro_batch, value_range=value_range)
        part = _draw_part(asked, captured, statistics, space, device)
        # Where memory was short once it will be again.
        micro_batch = part.micro_batch
        parts.append(part)

    def joined(statistic: str, name: str) -> Tensor:
        values = torch.cat([part.statistics[statistic][name] for part in parts]).to(images.device)
        return _rows_of_pixels(values) if space.is_per_pixel else values

    draws = Draws(
        class_distance=joined("distance", "mean"),
        distance_std=joined("distance", "variance").sqrt(),
        votes=joined("votes", "share"),
        pixel_votes=joined("pixel_votes", "mean"),
        code_probability=project_on_simplex(joined("weights", "mean")) if is_posterior_mean else None,
        code_entropy=joined("entropy", "mean") if is_posterior_mean else None,
        code_mean=joined("probability", "mean") if is_posterior_mean else None,
        stopped_by=None if stop is None else "votes" if isinstance(stop, SettledVote) else "rule",
        sample_distance=torch.cat([part.samples["distance"] for part in parts]) if settings.keep_samples else None,
    )
    n_samples = torch.cat([part.n_samples for part in parts]).to(images.device)
    prediction = make_prediction(
        draws,
        decision=settings.decision,
        readout=readout.name,
        n_samples=settings.n_samples if stop is None else n_samples,
        nfe=parts[-1].nfe or 0,
        micro_batch=parts[-1].micro_batch,
        precision=precision_of(solver.dtype),
        convolution=solver.network.convolution,
    )
    if space.is_per_pixel:
        prediction = dataclasses.replace(prediction, map_shape=space.semantic_shape[1:])
    is_invalid = torch.cat([part.first_invalid >= 0 for part in parts])
    if is_invalid.any():
        of_rows = is_invalid.repeat_interleave(len(prediction) // len(images))
        label = prediction.label.masked_fill(of_rows.to(images.device), -1)
        raise InvalidPredictionError(dataclasses.replace(prediction, label=label), is_invalid.nonzero()[:, 0].tolist())
    return prediction


def _rows_of_pixels(values: Tensor) -> Tensor:
    """Return values of pixels [N, H, W] or [N, n, H, W] as rows, picture by picture: [N * H * W] or [N * H * W, n]."""
    return values.flatten() if values.ndim == 3 else values.permute(0, 2, 3, 1).flatten(0, 2)


def _draw_part(
    request: ClassifyRequest,
    captured: CapturedTrajectory,
    statistics: dict[str, Statistic],
    space: JointSpace,
    device: torch.device,
) -> SamplingResult:
    settings = request.settings
    prepared = prepare_images(request.images, space.image_size, space.image_channels, value_range=settings.value_range)
    try:
        return draw(
            captured,
            space.encode(prepared, device) if request.latents is None else request.latents,
            settings.n_samples,
            space.semantic_shape,
            seed=request.seed,
            input_key=None if request.noise is not None else content_key(prepared),
            noise=request.noise,
            antithetic=settings.antithetic,
            statistics=statistics,
            keep_samples=("distance",) if settings.keep_samples else False,
            stop=settings.stop,
            micro_batch=settings.micro_batch,
            device=device,
            progress=request.progress,
        )
    except InvalidSamplesError as error:
        return error.result


def content_key(prepared: ImageBatch) -> Tensor:
    """Return a number per picture that is a function of its values alone: int64 [N], in [0, 2^31), on the CPU.

    Two different pictures share a key, and then their noise, with probability 2^-31.
    """
    pictures = prepared.detach().cpu().contiguous().numpy()
    digests = [hashlib.blake2b(picture.tobytes(), digest_size=4).digest() for picture in pictures]
    return torch.tensor([int.from_bytes(digest, "little") >> 1 for digest in digests], dtype=torch.int64)
