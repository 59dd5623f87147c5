"""The memory format of an operator's output: one rule for references, kernels and fakes."""

import torch
from torch import Tensor

from msf_kernels._derivatives import is_vectorising


def output_memory_format(*inputs: Tensor) -> torch.memory_format:
    """Return channels-last if any input is laid out so (and not contiguous at the same time), else contiguous.

    Args:
        *inputs: Tensors of any rank; only those of four axes can be channels-last. Inside `torch.func.vmap`, where
            nobody can see the layout, contiguous.
    """
    is_channels_last = any(x.dim() == 4 and not x.is_contiguous() and is_channels_last_map(x) for x in inputs)
    return torch.channels_last if is_channels_last else torch.contiguous_format


def is_channels_last_map(x: Tensor) -> bool:
    """Return whether a map [N, C, H, W] is laid out channels-last; never inside `torch.func.vmap`."""
    return not is_vectorising() and x.is_contiguous(memory_format=torch.channels_last)


def in_memory_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return a map [N, C, H, W] in a memory format, copied where it is in another; contiguous inside `vmap`."""
    return x.contiguous() if is_vectorising() else x.contiguous(memory_format=memory_format)
