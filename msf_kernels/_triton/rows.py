"""Vectors per channel, and one such row per item or for all items, as kernels read them."""

from __future__ import annotations

from torch import Tensor


def dense(rows: Tensor | None) -> Tensor | None:
    """Return rows [C], [N, C] or [1, C] whose channels are next to each other: themselves, or a copy."""
    return rows if rows is None or rows.stride(-1) == 1 else rows.contiguous()


def row_stride(rows: Tensor | None) -> int:
    """Return the stride from one item's row to the next, zero where all items share one row."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.stride(0)
