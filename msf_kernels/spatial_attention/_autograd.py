"""Gradients of the attention over any family of operators that compute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msf_kernels._derivatives import composed_gradients, must_compose, refusing_second_when_traced
from msf_kernels.spatial_attention._reference import spatial_attention_reference


def differentiable(
    fwd: Callable[[Tensor, int, str], tuple[Tensor, ...]], bwd: Callable[..., Tensor] | None = None
) -> Callable[..., Tensor]:
    """Return the public function, without its checks and its selector, over the given operators.

    Args:
        fwd: `(qkv, num_heads, order) -> (out, *rest)`.
        bwd: `(grad_out, out, *rest, qkv, num_heads, order) -> gradient of qkv`. None: the gradient is that of the
            definition, computed when it is asked for.
    """

    class SpatialAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, qkv: Tensor, num_heads: int, order: str) -> Tensor:
            results = fwd(qkv, num_heads, order)
            ctx.save_for_backward(*(() if bwd is None else results), qkv)
            ctx.num_heads, ctx.order = num_heads, order
            return results[0]

        @staticmethod
        def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, None, None]:
            *results, qkv = ctx.saved_tensors
            if bwd is not None and not must_compose(grad_out):
                return bwd(grad_out, *results, qkv, ctx.num_heads, ctx.order), None, None
            (grad,) = composed_gradients(
                lambda qkv: spatial_attention_reference(qkv, ctx.num_heads, order=ctx.order), [qkv], [True], [grad_out]
            )
            return grad, None, None

    def spatial_attention(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
        if torch.is_grad_enabled() and qkv.requires_grad:
            out: Tensor = SpatialAttention.apply(qkv, num_heads, order)  # type: ignore[no-untyped-call]
            # Without a kernel of its own the backward pass is composed, and not traced.
            return out if bwd is None else refusing_second_when_traced(out)
        return fwd(qkv, num_heads, order)[0]

    return spatial_attention
