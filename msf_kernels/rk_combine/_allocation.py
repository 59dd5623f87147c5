"""Outputs of the combination's operators before they are filled: what kernels allocate and what fakes promise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msf_kernels.checks import FLOATING
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


def fake_rk_combine_fwd(state: Tensor, *_rest: Any) -> Tensor:
    """Return what `rk_combine_fwd` of any family of operators allocates."""
    return empty_combined(state, state.dtype)


def fake_rk_combine_cast_fwd(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float,
    dt_items: Tensor | None,
    cast_to: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return what `rk_combine_cast_fwd` of any family of operators allocates."""
    return empty_combined(state, state.dtype), empty_combined(state, cast_to)


def fake_rk_combine_out(*_args: Any) -> None:
    """Allocate nothing, as `rk_combine_out` of any family of operators."""


def fake_rk_combine_bwd(
    grad: Tensor, weights: Sequence[float], dt: float, dt_items: Tensor | None, dtype_codes: Sequence[int]
) -> list[Tensor]:
    """Return what `rk_combine_bwd` of any family of operators allocates."""
    return empty_gradients(grad, [FLOATING[code] for code in dtype_codes])


def fake_rk_combine_bwd_dt(grad: Tensor, *_rest: Any) -> Tensor:
    """Return what `rk_combine_bwd_dt` of any family of operators allocates."""
    return empty_step_gradient(grad)
