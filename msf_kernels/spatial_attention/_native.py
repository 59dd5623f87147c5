"""The attention in the native extension, on the CPU: fast in bfloat16 where the processor multiplies pairs of it."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels.spatial_attention._allocation import empty_outputs
from msf_kernels.spatial_attention._autograd import differentiable

PAIRS_HEAD_DIM_MULTIPLE = 16


def _fwd_fake(qkv: Tensor, num_heads: int, by_part: bool) -> Tensor:
    return empty_outputs(qkv, num_heads)[0]


_fwd = _ext.operator("spatial_attention_fwd", _fwd_fake)


def _fwd_by_order(qkv: Tensor, num_heads: int, order: str) -> tuple[Tensor]:
    return (_fwd(qkv, num_heads, order == "new"),)


spatial_attention_native = differentiable(_fwd_by_order)


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
        and _ext.has_pair_dots()
    )
