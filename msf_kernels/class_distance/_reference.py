"""Distances and votes in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels._derivatives import is_differentiated


def class_distance_reference(semantic: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what `msf_kernels.class_distance` documents; [N, K, H, W], [n_classes, K] -> two of [N, n_classes]."""
    dtype = torch.float64 if semantic.dtype == torch.float64 else torch.float32
    pixels = semantic.to(dtype).flatten(2)  # [N, K, P]
    difference = pixels[:, None] - codes.to(dtype)[:, :, None]  # [N, n_classes, K, P]
    distance = _norm(difference)  # [N, n_classes, P]
    nearest = distance.detach().argmin(dim=1)  # [N, P]; the first of equal minima
    class_index = torch.arange(codes.shape[0], device=codes.device)
    votes = (nearest[:, None] == class_index[:, None]).to(dtype)  # [N, n_classes, P]
    return distance.mean(dim=2), votes.mean(dim=2)


def _norm(difference: Tensor) -> Tensor:
    """Return the norm over the channels, all of whose derivatives are zero where it is; [N, n, K, P] -> [N, n, P]."""
    if not is_differentiated(difference):
        norm: Tensor = torch.linalg.vector_norm(difference, dim=2)
        return norm
    # PyTorch's first derivative is zero there, and its second NaN.
    is_zero = (difference == 0).all(dim=2, keepdim=True)
    apart: Tensor = torch.linalg.vector_norm(difference.masked_fill(is_zero, 1.0), dim=2)
    return apart.masked_fill(is_zero.squeeze(2), 0.0)
