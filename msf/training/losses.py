"""The training loss: squared error of the velocity, weighed between the two streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from msf_kernels.shapes import JointState


@dataclass(frozen=True, eq=False)
class SymmetricLoss:
    """Loss and its terms, 0-dim.

    Args:
        total: `image_weight * image + (1 - image_weight) * semantic`.
        image: Mean squared error of the image channels, without weight; of a part of a batch: its share of that.
        semantic: The same of the semantic channels.
    """

    total: Tensor
    image: Tensor
    semantic: Tensor


@dataclass(frozen=True, eq=False)
class ItemShares:
    """What each item adds to the two means; over a whole batch both sum to 1, or to 0 where no item counts.

    A batch that is worked on in parts, by several processes or one after the other, gives each part the shares that
    its items have in the whole: losses and gradients of the parts then add up to those of the batch.

    Args:
        image: Shares in the image term; float64 [N], >= 0.
        semantic: Shares in the semantic term; float64 [N], >= 0.
    """

    image: Tensor
    semantic: Tensor

    @classmethod
    def of_batch(cls, n: int, is_labelled: Tensor | None = None) -> Self:
        """Return equal shares for a whole batch.

        Args:
            n: Items, >= 1.
            is_labelled: Items whose semantic part counts, bool [n]; None: all.
        """
        image = torch.full((n,), 1 / n, dtype=torch.float64)
        return cls(image, image if is_labelled is None else is_labelled.double() / is_labelled.sum().clamp(min=1))

    def of(self, items: Tensor) -> ItemShares:
        """Return the shares of some items; int64 [M]."""
        return ItemShares(self.image[items], self.semantic[items])

    def to(self, device: torch.device) -> ItemShares:
        """Return them on a device."""
        image, semantic = (share.to(device, non_blocking=True) for share in (self.image, self.semantic))
        return ItemShares(image, semantic)


def symmetric_loss(
    v: JointState, dz_t: JointState, image_channels: int, image_weight: float, shares: ItemShares | None = None
) -> SymmetricLoss:
    """Return the weighted squared error between a velocity and its target.

    `lambda mean((v - dz_t)[:, :C]^2) + (1 - lambda) mean((v - dz_t)[:, C:]^2)`, C = `image_channels`,
    lambda = `image_weight`.

    Args:
        v: Predicted velocity, float [N, C + K, H, W], N >= 1.
        dz_t: Target velocity, like `v`.
        image_channels: C, in [1, C + K).
        image_weight: lambda, in [0, 1].
        shares: What each item adds to the means; None: all the same, `ItemShares.of_batch(N)`.

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
    if shares is None:
        shares = ItemShares.of_batch(len(v)).to(v.device)
    image = (squared[:, :image_channels].mean(dim=(1, 2, 3)) * shares.image.to(dtype)).sum()
    semantic = (squared[:, image_channels:].mean(dim=(1, 2, 3)) * shares.semantic.to(dtype)).sum()
    return SymmetricLoss(image_weight * image + (1 - image_weight) * semantic, image, semantic)
