"""The symmetric probability path with given noise, and how training times are drawn on it.

`msf_kernels.symmetric_path` computes the same path with noise from a counter-based generator; this module serves where
the noise is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msf.config import PathConfig, TimeSampling
from msf_kernels.shapes import ImageBatch, JointState, SemanticBatch, TimeBatch


@dataclass(frozen=True, eq=False)
class PathSample:
    """A point of the path and the velocity there.

    Args:
        z_t: Joint state, [N, C + K, H, W], image first.
        dz_t: Target velocity, like `z_t`.
        t: The times that the state was made with.
    """

    z_t: JointState
    dz_t: JointState
    t: TimeBatch


@dataclass(frozen=True)
class SymmetricProbPath:
    """Straight lines from noise to image and from code to noise, along one time axis or one per stream.

    `image_t = (1 - (1 - s) t) noise_image + t image_1` and
    `semantic_t = (1 - (1 - s) t) semantic_0 + t noise_semantic`, with s = `sigma_min`.

    Args:
        sigma_min: Smallest noise, in [0, 1).

    Source:
        MedSymmFlow, arXiv 2507.19098; SymmFlow, arXiv 2506.10634.
    """

    sigma_min: float = 1e-4

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"sigma_min must be in [0, 1); got {self.sigma_min!r}")

    def sample(
        self,
        image_1: ImageBatch,
        semantic_0: SemanticBatch,
        t: TimeBatch | float,
        noise_image: ImageBatch,
        noise_semantic: SemanticBatch,
    ) -> PathSample:
        """Return the joint state at time t and the target velocity.

        Args:
            image_1: Pictures, float [N, C, H, W] in [-1, 1].
            semantic_0: Codes of the labels, float [N, K, H, W].
            t: Number, 0-dim or [N] for one time axis; [1, 2] or [N, 2] as (t_image, t_semantic) for one per stream.
            noise_image: Like `image_1`.
            noise_semantic: Like `semantic_0`.

        Returns:
            State, velocity and the time as a tensor.

        Raises:
            ValueError: Shapes that do not fit together.
        """
        _check_alike("noise_image", noise_image, "image_1", image_1)
        _check_alike("noise_semantic", noise_semantic, "semantic_0", semantic_0)
        if image_1.shape[0] != semantic_0.shape[0] or image_1.shape[2:] != semantic_0.shape[2:]:
            raise ValueError(
                "image_1 [N, C, H, W] and semantic_0 [N, K, H, W] must agree in N, H and W; "
                f"got {list(image_1.shape)} and {list(semantic_0.shape)}"
            )
        t = torch.as_tensor(t, dtype=image_1.dtype, device=image_1.device)
        t_image, t_semantic = _stream_times(t, image_1.shape[0])
        image = self._line(noise_image, image_1, t_image)
        semantic = self._line(semantic_0, noise_semantic, t_semantic)
        return PathSample(torch.cat([image[0], semantic[0]], dim=1), torch.cat([image[1], semantic[1]], dim=1), t)

    def _line(self, start: Tensor, end: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        shrink = 1 - self.sigma_min
        return (1 - shrink * t) * start + t * end, end - shrink * start


def sample_times(n: int, path_config: PathConfig, generator: torch.Generator) -> TimeBatch:
    """Draw the training times of a batch.

    Shared coupling: a share `end_share` of the items gets exactly t = 1, where one-step classification starts; the
    others follow `time_sampling`: uniform, the logistic of a standard normal, or `1 - u^3` with u uniform, whose
    density `(1 - t)^(-2/3) / 3` is that of the nodes of `msf_kernels.solvers.cubic_grid`.

    Independent coupling gives every use of the network its part of the unit square, e = `end_share`:

    - e^2: (1, 1), the start of every classification;
    - e (1 - e): (1, t), the picture held while the label forms (conditional classification);
    - (1 - e) e: (t, 0), the label held while the picture forms (conditional generation);
    - (1 - e)^2: two independent times (joint flow).

    Cubic times are then the label's alone, which is decided near t = 1; those of pictures are uniform.

    Times are stratified within the batch: the items' uniforms lie one in each of n equal intervals, in random order.
    Each item's own distribution is as stated; the batch mean of the loss varies less.

    Args:
        n: Items, >= 0.
        path_config: `time_coupling`, `time_sampling` and `end_share` are read.
        generator: Source of randomness; the times are made on its device.

    Returns:
        float32 [N], or [N, 2] as (t_image, t_semantic), in [0, 1].
    """
    share = path_config.end_share
    first = _stratified_uniform(n, generator)
    if path_config.time_coupling == "shared":
        is_end = first < share
        return torch.where(is_end, 1.0, _warp((first - share) / (1 - share or 1), path_config.time_sampling)).float()
    # The first uniform chooses the region; its position inside the region is again uniform and is the image's time.
    edges = torch.tensor([0.0, share**2, share, share + (1 - share) * share, 1.0], dtype=torch.float64)
    edges = edges.to(first.device)
    region = (torch.bucketize(first, edges, right=True) - 1).clamp(0, 3)
    low, high = edges[region], edges[region + 1]
    sampling = path_config.time_sampling
    t_image = _warp((first - low) / (high - low), "uniform" if sampling == "cubic" else sampling)
    t_semantic = _warp(_stratified_uniform(n, generator), sampling)
    t_image = torch.where(region <= 1, 1.0, t_image)
    t_semantic = torch.where(region == 0, 1.0, torch.where(region == 2, 0.0, t_semantic))
    return torch.stack([t_image, t_semantic], dim=1).float()


def _stratified_uniform(n: int, generator: torch.Generator) -> Tensor:
    device = generator.device
    inside = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
    uniform: Tensor = (torch.randperm(n, generator=generator, device=device) + inside) / max(n, 1)
    return uniform.clamp(max=1 - 2**-53)  # rounding must not make a 1, which lies in no interval


def _warp(uniform: Tensor, sampling: TimeSampling) -> Tensor:
    """Map uniforms to the distribution of times."""
    uniform = uniform.clamp(0, 1)
    if sampling == "cubic":
        cubic: Tensor = 1 - (1 - uniform) ** 3
        return cubic
    if sampling == "logit_normal":
        normal: Tensor = torch.special.ndtri(uniform)
        return normal.sigmoid()
    return uniform


def _stream_times(t: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return both streams' times, broadcastable to [N, 1, 1, 1]."""
    if t.ndim <= 1 and t.numel() in (1, n):
        t = t.reshape(-1, 1, 1, 1)
        return t, t
    if t.ndim == 2 and t.shape[1] == 2 and t.shape[0] in (1, n):
        t_image, t_semantic = t.unbind(dim=1)
        return t_image.reshape(-1, 1, 1, 1), t_semantic.reshape(-1, 1, 1, 1)
    raise ValueError(f"t must be a number, [N], [1, 2] or [N, 2] with N = {n}; got shape {list(t.shape)}")


def _check_alike(name: str, value: Tensor, like_name: str, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(f"{name} must have the shape of {like_name}, {list(like.shape)}; got {list(value.shape)}")
