"""The attention in the native extension, on the CPU: fast in bfloat16 where the processor multiplies pairs of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from msf_kernels import _ext
from msf_kernels.spatial_attention._allocation import empty_outputs
from msf_kernels.spatial_attention._reference import spatial_attention_reference

PAIRS_HEAD_DIM_MULTIPLE = 16


def _fwd_fake(qkv: Tensor, num_heads: int, by_part: bool) -> Tensor:
    return empty_outputs(qkv, num_heads)[0]


_fwd = _ext.operator("spatial_attention_fwd", _fwd_fake)


class _SpatialAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, order: str) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.num_heads, ctx.order = num_heads, order
        out: Tensor = _fwd(qkv, num_heads, order == "new")
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
        leaf = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = spatial_attention_reference(leaf, ctx.num_heads, order=ctx.order)
        return torch.autograd.grad(out, leaf, grad_out)[0], None, None


def spatial_attention_native(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
    """Run the native operator; a gradient that is wanted is the reference's. [N, T, 3C] -> [N, T, C]."""
    out: Tensor
    if torch.is_grad_enabled() and qkv.requires_grad:
        out = _SpatialAttention.apply(qkv, num_heads, order)  # type: ignore[no-untyped-call]
    else:
        out = _fwd(qkv, num_heads, order == "new")
    return out


def native_reasons(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> list[str]:
    """Return why the native operator cannot serve these inputs; empty when it can."""
    reasons = []
    if qkv.device.type != "cpu":
        reasons.append(f"has no kernel for tensors on {qkv.device.type}")
    if qkv.dtype == torch.float64:
        reasons.append("computes in float32; float64 is left to the reference")
    return reasons


def has_fast_path(qkv: Tensor, num_heads: int) -> bool:
    """Return whether the native operator multiplies pairs of bfloat16 for these inputs, forward."""
    head_dim = qkv.shape[2] // (3 * num_heads)
    return (
        qkv.device.type == "cpu"
        and qkv.dtype == torch.bfloat16
        and head_dim % PAIRS_HEAD_DIM_MULTIPLE == 0
        and not _ext.machine_reasons()
        and _has_pair_dots()
    )


def _has_pair_dots() -> bool:
    return bool(torch.ops.msf_native.has_pair_dots())


# torch.compile evaluates this while it traces, as it does `_ext._load`.
vars(_has_pair_dots)["_dynamo_marked_constant"] = True
