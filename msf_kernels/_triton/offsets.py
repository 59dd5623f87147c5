"""Offset arithmetic that holds beyond 2^31 elements."""

import triton
import triton.language as tl
from torch import Tensor


def offset_type(*tensors: Tensor | None) -> tl.dtype:
    """Return int64 where an offset inside one item of any of the tensors does not fit in 31 bits, else int32."""
    for x in tensors:
        if x is not None:
            last = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
            if last >= 2**31:
                return tl.int64
    return tl.int32


@triton.jit
def block_offsets(pid, BLOCK: tl.constexpr):
    """Return the elements of block `pid` as int64; [BLOCK]. The widening comes before the multiplication."""
    return tl.cast(pid, tl.int64) * BLOCK + tl.arange(0, BLOCK)
