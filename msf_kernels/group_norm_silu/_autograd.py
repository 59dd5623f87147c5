"""Gradients of the group norm over any family of operators that compute it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from msf_kernels._derivatives import composed_gradients, must_compose, refusing_second_when_traced
from msf_kernels.distinct import distinct
from msf_kernels.group_norm_silu._call import NormCall
from msf_kernels.group_norm_silu._reference import group_norm_silu_elementary


def differentiable(
    fwd: Callable[..., tuple[Tensor, Tensor, Tensor]], bwd: Callable[..., tuple[Tensor, ...]]
) -> Callable[..., Tensor]:
    """Return the public function of a `NormCall`, without its checks and its selector, over the given operators.

    Args:
        fwd: `(x, num_groups, weight, bias, skip, add, scale, shift, eps, silu) -> (out, mean, rstd)`.
        bwd: `(grad_out, mean, rstd, x, num_groups, weight, bias, skip, add, scale, shift, silu) -> gradients` of x,
            weight, bias, skip, add, scale and shift; without elements for an absent one.
    """

    class GroupNormSilu(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            x: Tensor,
            num_groups: int,
            weight: Tensor,
            bias: Tensor,
            skip: Tensor | None,
            add: Tensor | None,
            scale: Tensor | None,
            shift: Tensor | None,
            eps: float,
            silu: bool,
        ) -> Tensor:
            out, mean, rstd = fwd(x, num_groups, weight, bias, skip, add, scale, shift, eps, silu)
            ctx.save_for_backward(mean, rstd, x, weight, bias, skip, add, scale, shift)
            ctx.num_groups, ctx.eps, ctx.silu = num_groups, eps, silu
            return out

        @staticmethod
        def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
            mean, rstd, x, weight, bias, *optional = ctx.saved_tensors
            grads: Sequence[Tensor | None]
            if must_compose(grad_out):
                needs_x, _, *needs = ctx.needs_input_grad[:8]
                grads = composed_gradients(
                    lambda x, *rest: group_norm_silu_elementary(x, ctx.num_groups, *rest, ctx.eps, ctx.silu),
                    (x, weight, bias, *optional),
                    (needs_x, *needs),
                    (grad_out,),
                )
            else:
                grads = bwd(grad_out, mean, rstd, x, ctx.num_groups, weight, bias, *optional, ctx.silu)
            grad_x, grad_weight, grad_bias, *grad_optional = grads
            pairs = zip(optional, grad_optional, strict=True)
            of_given = [None if given is None else grad for given, grad in pairs]
            return grad_x, None, grad_weight, grad_bias, *of_given, None, None

    def group_norm_silu(call: NormCall) -> Tensor:
        given = call.tensors
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given):
            apart = iter(distinct(given))
            arguments = [next(apart) if isinstance(value, Tensor) else value for value in call]
            out: Tensor = GroupNormSilu.apply(*arguments)  # type: ignore[no-untyped-call]
            return refusing_second_when_traced(out)
        return fwd(*call)[0]

    return group_norm_silu
