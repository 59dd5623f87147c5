"""The training loss: squared error of the velocity, weighed between the two streams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msf_kernels.shapes import JointState


@dataclass(frozen=True, eq=False)
class SymmetricLoss:
    """Loss and its terms, 0-dim.

    Args:
        total: `image_weight * image + (1 - image_weight) * semantic`.
        image: Mean squared error of the image channels, without weight.
        semantic: Mean squared error of the semantic channels, without weight.
    """

    total: Tensor
    image: Tensor
    semantic: Tensor


def symmetric_loss(
    v: JointState, dz_t: JointState, image_channels: int, image_weight: float, is_labelled: Tensor | None = None
) -> SymmetricLoss:
    """Return the weighted squared error between a velocity and its target.

    `lambda mean((v - dz_t)[:, :C]^2) + (1 - lambda) mean((v - dz_t)[:, C:]^2)`, C = `image_channels`,
    lambda = `image_weight`.

    Args:
        v: Predicted velocity, float [N, C + K, H, W], N >= 1.
        dz_t: Target velocity, like `v`.
        image_channels: C, in [1, C + K).
        image_weight: lambda, in [0, 1].
        is_labelled: Items whose semantic part counts, bool [N]; None: all. Without any the semantic term is 0.

    Returns:
        Total and unweighted terms.

    Raises:
        ValueError: Shapes that differ, or a value out of range.

    Numerics:
        Differences and means in float32 (float64 for float64 input), also for a bfloat16 velocity.

    Source:
        MedSymmFlow, arXiv 2507.19098.
    """
    if v.shape != dz_t.shape or v.ndim != 4:
        raise ValueError(f"v and dz_t must be alike, [N, C + K, H, W]; got {list(v.shape)} and {list(dz_t.shape)}")
    if not 1 <= image_channels < v.shape[1]:
        raise ValueError(f"image_channels must be in [1, {v.shape[1]}) for v {list(v.shape)}; got {image_channels}")
    if not 0 <= image_weight <= 1:
        raise ValueError(f"image_weight must be in [0, 1]; got {image_weight}")
    dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    squared = (v.to(dtype) - dz_t.to(dtype)).square()
    image = squared[:, :image_channels].mean()
    semantic = squared[:, image_channels:].mean()
    if is_labelled is not None:
        per_item = squared[:, image_channels:].mean(dim=(1, 2, 3))
        semantic = (per_item * is_labelled).sum() / is_labelled.sum().clamp(min=1)
    return SymmetricLoss(image_weight * image + (1 - image_weight) * semantic, image, semantic)
