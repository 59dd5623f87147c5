"""The error ratio in the native extension: its operator, and what it does not take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msf_kernels import _ext

_MAX_SLOPES = 16


def fake_scaled_error_norm(state: Tensor, *_rest: Any) -> Tensor:
    """Return what the operator allocates."""
    return state.new_empty(state.shape[0], dtype=torch.float64 if state.dtype == torch.float64 else torch.float32)


_scaled_error_norm = _ext.operator("scaled_error_norm", fake_scaled_error_norm)


def scaled_error_norm_native(
    state: Tensor,
    next_state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    rtol: float,
    atol: float,
) -> Tensor:
    """Run the operator, which takes a step for all items or one per item."""
    number, items = (1.0, dt) if isinstance(dt, Tensor) else (dt, None)
    result: Tensor = _scaled_error_norm(state, next_state, slopes, weights, number, items, rtol, atol)
    return result


def native_reasons(
    state: Tensor,
    next_state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    rtol: float,
    atol: float,
) -> list[str]:
    """Return why the native operator cannot serve these inputs; empty when it can."""
    reasons = _ext.tensor_reasons("scaled_error_norm", (state,))
    if len(slopes) > _MAX_SLOPES:
        reasons.append(f"takes at most {_MAX_SLOPES} slopes; got {len(slopes)}")
    return reasons
