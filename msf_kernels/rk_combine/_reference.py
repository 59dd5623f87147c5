"""The Runge-Kutta combination in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels.checks import FLOATING
from msf_kernels.memory_format import output_memory_format


def rk_combine_reference(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    *,
    out: Tensor | None = None,
    cast_to: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute what `msf_kernels.rk_combine` documents; shapes as `state`."""
    combined = combine(state, slopes, weights, dt)
    cast = None if cast_to is None else combined.to(cast_to, copy=True)
    combined = combined.to(state.dtype)
    if out is not None:
        combined = out.copy_(combined)
    return combined if cast is None else (combined, cast)


def rk_combine_out_reference(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float,
    dt_items: Tensor | None,
    out: Tensor,
    cast_out: Tensor | None,
) -> None:
    """Fill `out` and, if given, `cast_out`; `dt_items` [N] takes the place of `dt` where it is given."""
    combined = combine(state, slopes, weights, dt if dt_items is None else dt_items)
    if cast_out is not None:
        cast_out.copy_(combined)
    out.copy_(combined)


def combine(state: Tensor, slopes: Sequence[Tensor], weights: Sequence[float], dt: float | Tensor) -> Tensor:
    """Return the unrounded combination, fp32 or fp64, in the output's memory format; never `state` itself."""
    dtype = compute_dtype(state)
    combined = state.to(dtype, copy=True)
    if slopes:
        step = per_item(dt.to(dtype), state) if isinstance(dt, Tensor) else dt
        combined = combined + direction(slopes, weights, dtype) * step
    return combined.contiguous(memory_format=output_memory_format(state))


def slope_gradients(
    grad: Tensor, weights: Sequence[float], dt: float, dt_items: Tensor | None, dtype_codes: Sequence[int]
) -> list[Tensor]:
    """Return `dt * weights[i] * grad` in the dtype at position `dtype_codes[i]` of `FLOATING`."""
    dtype = compute_dtype(grad)
    step = dt if dt_items is None else per_item(dt_items.to(dtype), grad)
    scaled = grad.to(dtype) * step
    return [(scaled * weight).to(FLOATING[code]) for weight, code in zip(weights, dtype_codes, strict=True)]


def step_gradient(grad: Tensor, slopes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the sum over an item of `grad * sum_i weights[i] * slopes[i]`; [N]."""
    product = grad.to(compute_dtype(grad)) * direction(slopes, weights, compute_dtype(grad))
    return product.sum(tuple(range(1, product.dim()))) if product.dim() > 1 else product


def direction(slopes: Sequence[Tensor], weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return `sum_i weights[i] * slopes[i]` in `dtype`, added from the first to the last."""
    total = slopes[0].to(dtype) * weights[0]
    for slope, weight in zip(slopes[1:], weights[1:], strict=True):
        total = total + slope.to(dtype) * weight
    return total


def compute_dtype(state: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic."""
    return torch.float64 if state.dtype == torch.float64 else torch.float32


def per_item(values: Tensor, state: Tensor) -> Tensor:
    """Make values [N] broadcast over the further axes of `state`."""
    return values.reshape(-1, *[1] * (state.dim() - 1))
