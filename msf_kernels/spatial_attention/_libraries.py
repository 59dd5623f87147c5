"""Attention kernels of other libraries behind the operator's own arguments, each with its reasons to refuse.

All of them read q, k and v as strided views of the packed tensor; a library that copies them pays for it in its
measurements.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels._derivatives import once_then_composed
from msf_kernels.spatial_attention._layout import split_heads
from msf_kernels.spatial_attention._reference import spatial_attention_reference

_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("flash_attn", "xformers")}
MAX_FLASH_ATTN_HEAD_DIM = 256


def _sdpa(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
    """Run PyTorch's scaled_dot_product_attention; [N, T, 3C] -> [N, T, C]."""
    # Autocast would run it in half precision, whatever dtype it is given.
    with torch.autocast(qkv.device.type, enabled=False):
        q, k, v = (part.transpose(1, 2) for part in split_heads(qkv, num_heads, order))  # [N, H, T, D]
        out = functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2).contiguous()


def _flash_attn(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
    """Run flash-attn's flash_attn_func; [N, T, 3C] -> [N, T, C]."""
    from flash_attn import flash_attn_func

    out: Tensor = flash_attn_func(*split_heads(qkv, num_heads, order))  # [N, T, H, D]
    return out.flatten(2).contiguous()


def flash_attn_machine_reasons() -> list[str]:
    """Return why flash-attn cannot run on this machine; empty when it can."""
    return _machine_reasons("flash_attn")


def flash_attn_input_reasons(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> list[str]:
    """Return why flash-attn cannot serve these inputs; empty when it can."""
    reasons = _cuda_reasons(qkv, (torch.float16, torch.bfloat16))
    head_dim = qkv.shape[2] // (3 * num_heads)
    if head_dim % 8 or head_dim > MAX_FLASH_ATTN_HEAD_DIM:
        reasons.append(f"takes head dimensions that are multiples of 8 up to {MAX_FLASH_ATTN_HEAD_DIM}; got {head_dim}")
    return reasons


def _xformers(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
    """Run xformers' memory_efficient_attention; [N, T, 3C] -> [N, T, C]."""
    from xformers.ops import memory_efficient_attention

    with torch.autocast(qkv.device.type, enabled=False):
        out: Tensor = memory_efficient_attention(*split_heads(qkv, num_heads, order))  # [N, T, H, D]
        return out.flatten(2).contiguous()


def xformers_machine_reasons() -> list[str]:
    """Return why xformers cannot run on this machine; empty when it can."""
    return _machine_reasons("xformers")


def xformers_input_reasons(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> list[str]:
    """Return why xformers cannot serve these inputs; empty when it can."""
    reasons = _cuda_reasons(qkv, (torch.float16, torch.bfloat16, torch.float32))
    head_dim = qkv.shape[2] // (3 * num_heads)
    values_per_load = 16 // qkv.element_size()
    if head_dim % values_per_load:
        reasons.append(f"takes head dimensions that are multiples of {values_per_load} in {qkv.dtype}; got {head_dim}")
    return reasons


# The libraries' kernels have a first derivative and no second.
spatial_attention_sdpa = once_then_composed(_sdpa, spatial_attention_reference)
spatial_attention_flash_attn = once_then_composed(_flash_attn, spatial_attention_reference)
spatial_attention_xformers = once_then_composed(_xformers, spatial_attention_reference)


def _machine_reasons(package: str) -> list[str]:
    if not _INSTALLED[package]:
        return [f"{package} is not installed"]
    return [] if torch.cuda.is_available() else ["needs a CUDA device"]


def _cuda_reasons(qkv: Tensor, dtypes: Sequence[torch.dtype]) -> list[str]:
    reasons = []
    if not qkv.is_cuda:
        reasons.append(f"takes tensors on cuda; got {qkv.device.type}")
    if qkv.dtype not in dtypes:
        reasons.append(f"takes {', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)}; got {qkv.dtype}")
    if qkv.numel() == 0:
        reasons.append("takes no empty tensors")
    return reasons
