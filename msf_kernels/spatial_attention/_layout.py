"""Where q, k and v lie in the packed tensor: the one statement of the two head orders."""

from __future__ import annotations

import torch
from torch import Tensor


def split_heads(qkv: Tensor, num_heads: int, order: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of q, k and v; [N, T, 3C] -> three [N, T, H, D]."""
    n, n_tokens, packed = qkv.shape
    head_dim = packed // (3 * num_heads)
    if order == "legacy":
        q, k, v = qkv.view(n, n_tokens, num_heads, 3, head_dim).unbind(3)
    else:
        q, k, v = qkv.view(n, n_tokens, 3, num_heads, head_dim).unbind(2)
    return q, k, v


def join_heads(q: Tensor, k: Tensor, v: Tensor, *, order: str) -> Tensor:
    """Return the packed tensor; three [N, T, H, D] -> [N, T, 3C]."""
    return torch.stack((q, k, v), dim=3 if order == "legacy" else 2).flatten(2)
