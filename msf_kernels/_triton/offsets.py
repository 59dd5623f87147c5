"""Offset arithmetic that holds beyond 2^31 elements."""

import triton
import triton.language as tl


@triton.jit
def block_offsets(pid, BLOCK: tl.constexpr):
    """Return the elements of block `pid` as int64; [BLOCK]. The widening comes before the multiplication."""
    return tl.cast(pid, tl.int64) * BLOCK + tl.arange(0, BLOCK)
