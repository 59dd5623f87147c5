"""Attention kernels of other libraries behind the operator's own arguments, each with its reasons to refuse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels.spatial_attention._layout import split_heads


def spatial_attention_sdpa(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
    """Run PyTorch's scaled_dot_product_attention on strided views; [N, T, 3C] -> [N, T, C]."""
    with torch.autocast(qkv.device.type, enabled=False):
        q, k, v = (part.transpose(1, 2) for part in split_heads(qkv, num_heads, order))  # [N, H, T, D]
        out = functional.scaled_dot_product_attention(q, k, v)
        return out.transpose(1, 2).flatten(2).contiguous()
