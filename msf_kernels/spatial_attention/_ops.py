"""The attention as operators of torch.library: schemas, fakes, CPU bodies, autograd, FLOP counts.

`msf_triton::spatial_attention_fwd` and `_bwd` are what `torch.compile`, autograd and CUDA graphs see of a call: one
boundary per direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from msf_kernels._triton.machine import tensor_reasons
from msf_kernels._triton.registration import register
from msf_kernels.spatial_attention._allocation import empty_gradient, empty_outputs
from msf_kernels.spatial_attention._autograd import differentiable
from msf_kernels.spatial_attention._layout import join_heads, split_heads

MAX_HEAD_DIM = 128


def _fwd_formula(qkv: Tensor, num_heads: int, order: str) -> tuple[Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        q, k, v = (part.to(_compute_dtype(qkv)) for part in split_heads(qkv, num_heads, order))  # [N, T, H, D]
        scores = torch.einsum("nqhd,nkhd->nhqk", q, k) * q.shape[-1] ** -0.5
        lse = torch.logsumexp(scores, dim=-1)  # [N, H, T]
        out = torch.einsum("nhqk,nkhd->nqhd", (scores - lse[..., None]).exp(), v)
    return out.flatten(2).to(qkv.dtype).contiguous(), lse * math.log2(math.e)


def _fwd_fake(qkv: Tensor, num_heads: int, order: str) -> tuple[Tensor, Tensor]:
    return empty_outputs(qkv, num_heads)


def _bwd_formula(grad_out: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, num_heads: int, order: str) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        q, k, v = (part.to(_compute_dtype(qkv)) for part in split_heads(qkv, num_heads, order))  # [N, T, H, D]
        scale = q.shape[-1] ** -0.5
        grad, out = (x.to(lse.dtype).view(q.shape) for x in (grad_out.contiguous(), out))
        p = (torch.einsum("nqhd,nkhd->nhqk", q, k) * scale - lse[..., None] / math.log2(math.e)).exp()
        delta = (grad * out).sum(3).transpose(1, 2)  # [N, H, T]
        grad_scores = p * (torch.einsum("nqhd,nkhd->nhqk", grad, v) - delta[..., None]) * scale
        grads = (
            torch.einsum("nhqk,nkhd->nqhd", grad_scores, k),
            torch.einsum("nhqk,nqhd->nkhd", grad_scores, q),
            torch.einsum("nhqk,nqhd->nkhd", p, grad),
        )
    return join_heads(*grads, order=order).to(qkv.dtype)


def _bwd_fake(grad_out: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, num_heads: int, order: str) -> Tensor:
    return empty_gradient(qkv)


def _compute_dtype(qkv: Tensor) -> torch.dtype:
    return torch.float64 if qkv.dtype == torch.float64 else torch.float32


_fwd = register(
    "spatial_attention_fwd(Tensor qkv, int num_heads, str order) -> (Tensor out, Tensor lse)",
    kernel="msf_kernels.spatial_attention._triton:launch_spatial_attention_fwd",
    formula=_fwd_formula,
    fake=_fwd_fake,
)
_bwd = register(
    "spatial_attention_bwd(Tensor grad_out, Tensor out, Tensor lse, Tensor qkv, int num_heads, str order) -> Tensor",
    kernel="msf_kernels.spatial_attention._triton:launch_spatial_attention_bwd",
    formula=_bwd_formula,
    fake=_bwd_fake,
)


spatial_attention_triton = differentiable(_fwd, _bwd)


def triton_input_reasons(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> list[str]:
    """Return why the Triton kernels cannot serve these inputs; empty when they can."""
    reasons = tensor_reasons([qkv])
    head_dim = qkv.shape[2] // (3 * num_heads)
    if head_dim > MAX_HEAD_DIM:
        reasons.append(f"takes head dimensions up to {MAX_HEAD_DIM}; got {head_dim}")
    return reasons


@register_flop_formula(torch.ops.msf_triton.spatial_attention_fwd)
def _fwd_flops(qkv_shape: Sequence[int], *_rest: Any, **_outputs: Any) -> int:
    """Two products of T x T x D per head, 2 operations per multiply-add, as PyTorch counts its own attention."""
    return 2 * _product_flops(qkv_shape)


@register_flop_formula(torch.ops.msf_triton.spatial_attention_bwd)
def _bwd_flops(*shapes: Sequence[int], **_outputs: Any) -> int:
    """Five products: the scores again, and the gradients of p, v, q and k, as PyTorch counts its own attention."""
    qkv_shape = shapes[3]
    return 5 * _product_flops(qkv_shape)


def _product_flops(qkv_shape: Sequence[int]) -> int:
    n, n_tokens, packed = qkv_shape
    return 2 * n * n_tokens * n_tokens * (packed // 3)
