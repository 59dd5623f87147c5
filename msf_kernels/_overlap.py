"""Which elements of two tensors are the same memory: an output may be written over an input, not half over it."""

from __future__ import annotations

import torch
from torch import Tensor


def require_apart(name: str, out: Tensor, other_name: str, other: Tensor, *, may_be_same: bool) -> None:
    """Check that no element of `out` is an element of another tensor, except that each may be its counterpart.

    Args:
        name: Name of `out` for the message.
        out: Tensor that is written.
        other_name: Name of the other for the message.
        other: Tensor that is read.
        may_be_same: Whether the two may be one and the same memory, element by element.

    Raises:
        ValueError: They overlap in another way.
    """
    if not _has_address(out) or not _has_address(other):
        return
    (first, last), (other_first, other_last) = _span(out), _span(other)
    if last <= other_first or other_last <= first:
        return
    if _is_same(out, other):
        if may_be_same:
            return
    elif not _share_bytes(out, other, min(first, other_first), max(last, other_last)):
        return
    allowed = f"be {other_name} itself or " if may_be_same else ""
    raise ValueError(
        f"{name} must {allowed}share no memory with {other_name}; got tensors that overlap: copy one of them first"
    )


def require_distinct_elements(name: str, out: Tensor) -> None:
    """Check that no two elements of a tensor that is written are the same memory.

    Raises:
        ValueError: Some are, as in an expanded tensor.
    """
    if not _has_address(out):
        return
    reach = 0  # of the axes so far, in steps of the innermost
    for size, stride in sorted(zip(out.shape, out.stride(), strict=True), key=lambda axis: axis[1]):
        if size > 1:
            if stride <= reach and _n_distinct(out) < out.numel():
                raise ValueError(
                    f"{name} must hold every element in memory of its own; got strides {out.stride()} for shape "
                    f"{list(out.shape)}"
                )
            reach += (size - 1) * stride


def _has_address(x: Tensor) -> bool:
    # Only a plain tensor's address tells what shares its memory; a compiler's stand-in has none.
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type != "meta"
        and x.numel() > 0
    )


def _span(x: Tensor) -> tuple[int, int]:
    """Return the addresses of the first byte and of the one behind the last; strides are never negative."""
    first = x.data_ptr()
    steps = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return first, first + (steps + 1) * x.element_size()


def _is_same(x: Tensor, other: Tensor) -> bool:
    if x.data_ptr() != other.data_ptr() or x.dtype != other.dtype or x.shape != other.shape:
        return False
    pairs = zip(x.shape, x.stride(), other.stride(), strict=True)
    return all(size == 1 or stride == other_stride for size, stride, other_stride in pairs)


def _share_bytes(x: Tensor, other: Tensor, first: int, last: int) -> bool:
    is_used = torch.zeros(last - first, dtype=torch.bool)
    is_used[_bytes_of(x) + (x.data_ptr() - first)] = True
    return bool(is_used[_bytes_of(other) + (other.data_ptr() - first)].any())


def _n_distinct(x: Tensor) -> int:
    return int(_offsets(x).sort().values.diff().ne(0).sum()) + 1


def _bytes_of(x: Tensor) -> Tensor:
    """Return the places of all bytes of a tensor behind its first one."""
    return (_offsets(x)[:, None] * x.element_size() + torch.arange(x.element_size())).flatten()


def _offsets(x: Tensor) -> Tensor:
    offsets = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(x.shape, x.stride(), strict=True):
        offsets = (offsets[..., None] + torch.arange(size) * stride).flatten() if size > 1 else offsets
    return offsets.flatten()
