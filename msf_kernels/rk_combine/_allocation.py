"""Outputs of the combination's operators before they are filled: what kernels allocate and what fakes promise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels.memory_format import output_memory_format


def empty_combined(state: Tensor, dtype: torch.dtype) -> Tensor:
    """Return room for a combination of the shape of `state`."""
    return torch.empty(state.shape, dtype=dtype, device=state.device, memory_format=output_memory_format(state))


def empty_gradients(grad: Tensor, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Return room for the gradients of slopes of the given dtypes."""
    return [empty_combined(grad, dtype) for dtype in dtypes]


def empty_step_gradient(grad: Tensor) -> Tensor:
    """Return room for the gradient of one step per item; [N, ...] -> [N]."""
    dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return torch.empty(grad.shape[0], dtype=dtype, device=grad.device)
