"""Self-attention over packed q, k, v in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.spatial_attention._layout import split_heads


def spatial_attention_reference(qkv: Tensor, num_heads: int, *, order: str = "legacy") -> Tensor:
    """Compute what `msf_kernels.spatial_attention` documents; [N, T, 3C] -> [N, T, C]."""
    compute_dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    # Autocast would run the two products in half precision, whatever dtype they are given.
    with torch.autocast(qkv.device.type, enabled=False):
        q, k, v = (
            part.to(compute_dtype).transpose(1, 2) for part in split_heads(qkv, num_heads, order)
        )  # [N, H, T, D]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [N, H, T, T]
        out = torch.softmax(scores, dim=-1) @ v  # [N, H, T, D]
        return out.transpose(1, 2).flatten(2).to(qkv.dtype).contiguous()
