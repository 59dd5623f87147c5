"""Generation: from noise and the code of a label to a picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from msf.flow.solver import FlowSolver, check_noise
from msf_kernels.philox_normal import IMAGE_STREAM
from msf_kernels.sampling import draw
from msf_kernels.shapes import ImageBatch, SemanticBatch


def generate(
    solver: FlowSolver,
    semantic: SemanticBatch,
    *,
    noise_shape: tuple[int, int, int],
    decode: Callable[[Tensor], ImageBatch],
    device: torch.device,
    seed: int,
    noise: Tensor | None = None,
    micro_batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageBatch:
    """Make one picture per semantic map; `MedSymmFlow.generate` is the public form.

    Args:
        solver: Leads from noise and code to the picture; its network is on `device`.
        semantic: Semantic maps at t = 0; [N, K, H, W], float, N >= 1.
        noise_shape: Shape (C, H, W) of the image part of the joint state.
        decode: Turns the image part [N, C, H, W] of joint states into pictures, about in [-1, 1], on its device.
        device: Where the network is.
        seed: Seed of the noise.
        noise: Noise to use instead; [N, C, H, W], float.
        micro_batch: Pictures made at once.
        progress: Called as `progress(n_done, n_total)`, in pictures.

    Returns:
        Pictures in [0, 1], float32, on the device of `semantic`.

    Raises:
        TypeError: Noise that is not floating point.
        ValueError: No semantic map, or a shape or a number out of range.

    Numerics:
        The noise of a picture is keyed by its position, so equal labels give different pictures and the first
        pictures are the same whatever follows.
    """
    if noise is not None:
        check_noise(noise, "[N, C, H, W]", (len(semantic), *noise_shape))
    result = draw(
        lambda codes, sample_noise: solver.to_picture(sample_noise, codes),
        semantic,
        1,
        noise_shape,
        seed=seed,
        stream=IMAGE_STREAM,
        noise=None if noise is None else noise[:, None],
        statistics={},
        keep_samples=True,
        micro_batch=micro_batch,
        device=device,
        progress=progress,
    )
    (image,) = result.samples.values()
    return (decode(image[:, 0]) / 2 + 0.5).clamp(0, 1)
