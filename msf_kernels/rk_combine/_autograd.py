"""Gradients of the combination over any family of operators that compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msf_kernels._derivatives import must_compose, refusing_second_when_traced
from msf_kernels.checks import FLOATING
from msf_kernels.distinct import distinct
from msf_kernels.rk_combine._allocation import empty_combined
from msf_kernels.rk_combine._reference import slope_gradients, step_gradient


@dataclass(frozen=True)
class RkCombineOperators:
    """One backend's operators. `dt_items` [N] takes the place of `dt` where it is given.

    Args:
        fwd: `(state, slopes, weights, dt, dt_items) -> combined`.
        cast_fwd: `(state, slopes, weights, dt, dt_items, cast_to) -> (combined, cast)`.
        out: `(state, slopes, weights, dt, dt_items, out, cast_out) -> ()`; fills `out` and, if given, `cast_out`.
        bwd: `(grad, weights, dt, dt_items, dtype_codes) -> gradients of slopes`: `dt * weights[i] * grad`, in the dtype
            at position `dtype_codes[i]` of `FLOATING` (torch.library's schema check knows no list of dtypes).
        bwd_dt: `(grad, slopes, weights) -> [N]`, sum over an item of `grad * sum_i weights[i] * slopes[i]`.
    """

    fwd: Callable[..., Tensor]
    cast_fwd: Callable[..., tuple[Tensor, Tensor]]
    out: Callable[..., None]
    bwd: Callable[..., Sequence[Tensor]]
    bwd_dt: Callable[..., Tensor]


def differentiable(operators: RkCombineOperators) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """Return the public function, without its checks and its selector, over the given operators."""

    class RkCombine(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            state: Tensor,
            dt_items: Tensor | None,
            weights: tuple[float, ...],
            dt: float,
            cast_to: torch.dtype | None,
            *slopes: Tensor,
        ) -> Tensor | tuple[Tensor, Tensor]:
            ctx.set_materialize_grads(False)
            needs_dt = dt_items is not None and dt_items.requires_grad
            ctx.save_for_backward(dt_items, *(slopes if needs_dt else ()))
            ctx.weights, ctx.dt = weights, dt
            ctx.state_dtype, ctx.slope_dtypes = state.dtype, tuple(slope.dtype for slope in slopes)
            return _run(state, slopes, weights, dt, dt_items, cast_to)

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None, grad_cast: Tensor | None = None) -> tuple[Tensor | None, ...]:
            if grad_cast is not None:
                grad_cast = grad_cast.to(ctx.state_dtype)
                grad = grad_cast if grad is None else grad + grad_cast
            dt_items, *slopes = ctx.saved_tensors
            grad_dt = None
            grad_slopes: list[Tensor | None] = [None] * len(ctx.weights)
            if grad is not None:
                of_slopes, of_step = operators.bwd, operators.bwd_dt
                if must_compose(grad):
                    of_slopes, of_step = slope_gradients, step_gradient
                wanted = [i for i, is_needed in enumerate(ctx.needs_input_grad[5:]) if is_needed]
                if wanted:
                    weights = [ctx.weights[i] for i in wanted]
                    codes = [FLOATING.index(ctx.slope_dtypes[i]) for i in wanted]
                    for i, gradient in zip(wanted, of_slopes(grad, weights, ctx.dt, dt_items, codes), strict=True):
                        grad_slopes[i] = gradient
                if ctx.needs_input_grad[1] and ctx.weights:
                    grad_dt = of_step(grad, slopes, ctx.weights).to(dt_items.dtype)
            return grad, grad_dt, None, None, None, *grad_slopes

    def _run(
        state: Tensor,
        slopes: Sequence[Tensor],
        weights: Sequence[float],
        dt: float,
        dt_items: Tensor | None,
        cast_to: torch.dtype | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if cast_to is None:
            return operators.fwd(state, slopes, weights, dt, dt_items)
        return operators.cast_fwd(state, slopes, weights, dt, dt_items, cast_to)

    def rk_combine(
        state: Tensor,
        slopes: Sequence[Tensor],
        weights: Sequence[float],
        dt: float | Tensor,
        *,
        out: Tensor | None = None,
        cast_to: torch.dtype | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        dt_items = dt if isinstance(dt, Tensor) else None
        dt_number = 1.0 if isinstance(dt, Tensor) else dt
        if out is not None:
            cast = None if cast_to is None else empty_combined(state, cast_to)
            operators.out(state, slopes, weights, dt_number, dt_items, out, cast)
            return out if cast is None else (out, cast)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (state, dt_items, *slopes)):
            state, *slopes = distinct([state, *slopes])
            result: Tensor | tuple[Tensor, Tensor] = RkCombine.apply(  # type: ignore[no-untyped-call]
                state, dt_items, tuple(weights), dt_number, cast_to, *slopes
            )
            return refusing_second_when_traced(result)
        return _run(state, slopes, weights, dt_number, dt_items, cast_to)

    return rk_combine
