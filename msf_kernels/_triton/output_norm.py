"""The group norm that a convolution applies to its own result; does not import Triton."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Up to here a tile of 64 rows holds whole items.
MAX_NORMALISED_PIXELS = 64
_MAX_GROUP_CHANNELS = 64


class OutputNorm(NamedTuple):
    """Group norm of a result, with SiLU or without.

    Args:
        num_groups: Number of groups; divides the channels.
        weight: Factor per channel, [K]; any floating dtype.
        bias: Offset per channel, [K]; any floating dtype.
        eps: Added to the variance; > 0.
        silu: Whether SiLU follows.
    """

    num_groups: int
    weight: Tensor
    bias: Tensor
    eps: float = 1e-5
    silu: bool = True


def can_normalise(n_pixels: int, n_out: int, num_groups: int) -> bool:
    """Return whether a tile can normalise what it computes: whole items, and groups that blocks are made of."""
    group_channels = n_out // num_groups
    is_power = group_channels & (group_channels - 1) == 0
    return 0 < n_pixels <= MAX_NORMALISED_PIXELS and is_power and group_channels <= _MAX_GROUP_CHANNELS
