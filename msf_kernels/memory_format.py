"""The memory format of an operator's output: one rule for references, kernels and fakes."""

import torch
from torch import Tensor


def output_memory_format(*inputs: Tensor) -> torch.memory_format:
    """Return channels-last if any input is laid out so (and not contiguous at the same time), else contiguous.

    Args:
        *inputs: Tensors of any rank; only those of four axes can be channels-last.
    """
    is_channels_last = any(
        x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous() for x in inputs
    )
    return torch.channels_last if is_channels_last else torch.contiguous_format
