"""The combination as operators of torch.library: schemas, fakes, CPU bodies, FLOP counts, autograd.

`msf_triton::rk_combine_fwd`, `_cast_fwd`, `_out` (one of them per call), `_bwd` and `_bwd_dt` are what `torch.compile`,
autograd and CUDA graphs see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from msf_kernels._triton.registration import register
from msf_kernels.checks import FLOATING
from msf_kernels.rk_combine._allocation import (
    fake_rk_combine_bwd,
    fake_rk_combine_bwd_dt,
    fake_rk_combine_cast_fwd,
    fake_rk_combine_fwd,
    fake_rk_combine_out,
)
from msf_kernels.rk_combine._autograd import RkCombineOperators, differentiable
from msf_kernels.rk_combine._reference import (
    combine,
    rk_combine_out_reference,
    slope_gradients,
    step_gradient,
)


def _fwd_formula(
    state: Tensor, slopes: Sequence[Tensor], weights: Sequence[float], dt: float, dt_items: Tensor | None
) -> Tensor:
    return combine(state, slopes, weights, dt if dt_items is None else dt_items).to(state.dtype)


def _cast_fwd_formula(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float,
    dt_items: Tensor | None,
    cast_to: torch.dtype,
) -> tuple[Tensor, Tensor]:
    combined = combine(state, slopes, weights, dt if dt_items is None else dt_items)
    return combined.to(state.dtype), combined.to(cast_to, copy=True)


def _bwd_kernel(
    grad: Tensor, weights: Sequence[float], dt: float, dt_items: Tensor | None, dtype_codes: Sequence[int]
) -> list[Tensor]:
    from msf_kernels.rk_combine._triton import launch_rk_combine_bwd

    return launch_rk_combine_bwd(grad, weights, dt, dt_items, [FLOATING[code] for code in dtype_codes])


def _bwd_formula(
    grad: Tensor, weights: Sequence[float], dt: float, dt_items: Tensor | None, dtype_codes: Sequence[int]
) -> list[Tensor]:
    outputs = fake_rk_combine_bwd(grad, weights, dt, dt_items, dtype_codes)
    for output, value in zip(outputs, slope_gradients(grad, weights, dt, dt_items, dtype_codes), strict=True):
        output.copy_(value)
    return outputs


triton_operators = RkCombineOperators(
    fwd=register(
        "rk_combine_fwd",
        kernel="msf_kernels.rk_combine._triton:launch_rk_combine_fwd",
        formula=_fwd_formula,
        fake=fake_rk_combine_fwd,
    ),
    cast_fwd=register(
        "rk_combine_cast_fwd",
        kernel="msf_kernels.rk_combine._triton:launch_rk_combine_cast_fwd",
        formula=_cast_fwd_formula,
        fake=fake_rk_combine_cast_fwd,
    ),
    out=register(
        "rk_combine_out",
        kernel="msf_kernels.rk_combine._triton:launch_rk_combine_out",
        formula=rk_combine_out_reference,
        fake=fake_rk_combine_out,
    ),
    bwd=register(
        "rk_combine_bwd",
        kernel=_bwd_kernel,
        formula=_bwd_formula,
        fake=fake_rk_combine_bwd,
    ),
    bwd_dt=register(
        "rk_combine_bwd_dt",
        kernel="msf_kernels.rk_combine._triton:launch_rk_combine_bwd_dt",
        formula=step_gradient,
        fake=fake_rk_combine_bwd_dt,
    ),
)

rk_combine_triton = differentiable(triton_operators)


@register_flop_formula(
    [
        torch.ops.msf_triton.rk_combine_fwd,
        torch.ops.msf_triton.rk_combine_cast_fwd,
        torch.ops.msf_triton.rk_combine_out,
    ]
)
def _fwd_flops(state_shape: Sequence[int], slope_shapes: Sequence[Sequence[int]], *_rest: Any, **_outputs: Any) -> int:
    """One multiplication and one addition per slope, and per state."""
    return 2 * math.prod(state_shape) * (len(slope_shapes) + 1 if slope_shapes else 0)


@register_flop_formula(torch.ops.msf_triton.rk_combine_bwd)
def _bwd_flops(grad_shape: Sequence[int], weights: Sequence[float], *_rest: Any, **_outputs: Any) -> int:
    return math.prod(grad_shape) * (len(weights) + 1)


@register_flop_formula(torch.ops.msf_triton.rk_combine_bwd_dt)
def _bwd_dt_flops(
    grad_shape: Sequence[int], slope_shapes: Sequence[Sequence[int]], *_rest: Any, **_outputs: Any
) -> int:
    return math.prod(grad_shape) * (2 * len(slope_shapes) + 1)
