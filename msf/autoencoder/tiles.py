"""Decoding one large picture as overlapping tiles, blended where they overlap."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

OVERLAP_SHARE = 0.25  # of a tile's side, at least


def decode_in_tiles(decode: Callable[[Tensor], Tensor], latents: Tensor, tile: int, down_factor: int) -> Tensor:
    """Return the decoded picture, put together from tiles.

    All tiles have one size and are spread evenly, so that no sliver is decoded on its own. In an overlap each counts
    more the farther its own edge is. What a decoder computes over the whole picture (norms, attention) it computes
    over each tile instead: the result is close to that of the whole picture, not equal.

    Args:
        decode: [N, L, h, w] -> [N, C, h * down_factor, w * down_factor].
        latents: [N, L, h, w].
        tile: Side of a tile in latents; an axis that is shorter is not divided.
        down_factor: Pixels per latent along an axis.

    Returns:
        [N, C, H, W], as `decode` would return.
    """
    height, width = latents.shape[2:]
    total: Tensor | None = None
    weights = latents.new_zeros(1, 1, height * down_factor, width * down_factor, dtype=torch.float32)
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            picture = decode(latents[:, :, top : top + tile, left : left + tile])
            rows = _ramp(picture.shape[2], tile * down_factor).to(picture)
            columns = _ramp(picture.shape[3], tile * down_factor).to(picture)
            weight = rows[:, None] * columns
            if total is None:
                total = picture.new_zeros(*picture.shape[:2], *weights.shape[2:])
            here = (
                slice(None), slice(None),
                slice(top * down_factor, top * down_factor + len(rows)),
                slice(left * down_factor, left * down_factor + len(columns)),
            )  # fmt: skip
            total[here] += picture * weight
            weights[here] += weight
    if total is None:
        raise ValueError(f"latents must have at least one row and one column; got {list(latents.shape)}")
    return total / weights


def tile_starts(length: int, tile: int) -> list[int]:
    """Return where the tiles of an axis begin: the first at 0, the last ending at `length`, evenly spread between.

    Args:
        length: Of the axis.
        tile: Length of a tile, >= 1; neighbours overlap by a quarter of it at least.
    """
    if length <= tile:
        return [0] if length else []
    n_tiles = 1 + math.ceil((length - tile) / max(1, math.floor(tile * (1 - OVERLAP_SHARE))))
    return [round(k * (length - tile) / (n_tiles - 1)) for k in range(n_tiles)]


def _ramp(length: int, tile: int) -> Tensor:
    """Return weights that rise over the overlap from both ends."""
    distance = torch.minimum(torch.arange(length), torch.arange(length).flip(0)) + 0.5
    return (distance / (tile * OVERLAP_SHARE)).clamp(max=1)
