"""Distances and votes in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def class_distance_reference(semantic: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what `msf_kernels.class_distance` documents; [N, K, H, W], [n_classes, K] -> two of [N, n_classes]."""
    dtype = torch.float64 if semantic.dtype == torch.float64 else torch.float32
    pixels = semantic.to(dtype).flatten(2)  # [N, K, P]
    difference = pixels[:, None] - codes.to(dtype)[:, :, None]  # [N, n_classes, K, P]
    distance = torch.linalg.vector_norm(difference, dim=2)  # [N, n_classes, P]; its gradient at zero is zero
    nearest = distance.detach().argmin(dim=1)  # [N, P]; the first of equal minima
    class_index = torch.arange(codes.shape[0], device=codes.device)
    votes = (nearest[:, None] == class_index[:, None]).to(dtype)  # [N, n_classes, P]
    return distance.mean(dim=2), votes.mean(dim=2)
