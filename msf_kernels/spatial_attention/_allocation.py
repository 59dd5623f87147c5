"""Outputs of the attention's operators before they are filled: what kernels allocate and what fakes promise."""

from __future__ import annotations

import torch
from torch import Tensor


def empty_outputs(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
    """Return out [N, T, C] and the log-sum-exp of every row of scores, to base 2, [N, H, T]."""
    n, n_tokens, packed = qkv.shape
    out = torch.empty((n, n_tokens, packed // 3), dtype=qkv.dtype, device=qkv.device)
    lse_dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return out, torch.empty((n, num_heads, n_tokens), dtype=lse_dtype, device=qkv.device)


def empty_gradient(qkv: Tensor) -> Tensor:
    """Return room for the gradient of the packed tensor; [N, T, 3C], contiguous."""
    return torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
