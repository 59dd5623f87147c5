"""Label maps: a class for every pixel of a picture, at the size that is wanted, mirrored with the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from msf.data.images import apply_flips


def resize_label_maps(maps: Tensor, height: int, width: int) -> Tensor:
    """Return label maps at another size: every pixel has the class at its centre; the same maps at their own.

    Enlarged and brought back, a map is what it was.

    Args:
        maps: Classes; whole numbers, [N, H, W] with H, W >= 1.
        height: Of the result, >= 1.
        width: Likewise.

    Returns:
        Like `maps`, [N, height, width].

    Raises:
        ValueError: Another rank, or a size below 1.
    """
    if maps.ndim != 3 or min(maps.shape[1:]) < 1 or min(height, width) < 1:
        raise ValueError(
            f"label maps must be [N, H, W] with pixels, and height and width >= 1; got {list(maps.shape)} for "
            f"{height} x {width}"
        )
    if tuple(maps.shape[1:]) == (height, width):
        return maps
    rows, columns = (
        ((torch.arange(wanted, device=maps.device) + 0.5) * (given / wanted)).floor().long().clamp(max=given - 1)
        for wanted, given in ((height, maps.shape[1]), (width, maps.shape[2]))
    )
    return maps[:, rows[:, None], columns]


def flip_label_maps(maps: Tensor, flips: Tensor) -> Tensor:
    """Return label maps [N, H, W], mirrored as `draw_flips` chose for their pictures; see `apply_flips`."""
    return apply_flips(maps[:, None], flips)[:, 0]
