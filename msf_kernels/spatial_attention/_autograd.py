"""A gradient for a kernel that has only a forward: that of the definition, computed when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from msf_kernels.spatial_attention._reference import spatial_attention_reference


def with_reference_gradient(fwd: Callable[[Tensor, int, bool], Tensor]) -> Callable[..., Tensor]:
    """Return the public form of `fwd(qkv, num_heads, by_part)`, differentiable with respect to `qkv`."""

    class SpatialAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, qkv: Tensor, num_heads: int, order: str) -> Tensor:
            ctx.save_for_backward(qkv)
            ctx.num_heads, ctx.order = num_heads, order
            return fwd(qkv, num_heads, order == "new")

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
            leaf = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                out = spatial_attention_reference(leaf, ctx.num_heads, order=ctx.order)
            return torch.autograd.grad(out, leaf, grad_out)[0], None, None

    def run(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
        if torch.is_grad_enabled() and qkv.requires_grad:
            out: Tensor = SpatialAttention.apply(qkv, num_heads, order)  # type: ignore[no-untyped-call]
            return out
        return fwd(qkv, num_heads, order == "new")

    return run
