"""The published comparison of a semantic map with the classes' colours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distances_class_by_class(semantic: Tensor, palette: Sequence[Sequence[float]]) -> Tensor:
    """Mean over pixels of the distance to each colour, class by class; [N, K, H, W] -> [N, n_classes]."""
    distances = []
    for colour in palette:
        code = torch.tensor(colour, dtype=semantic.dtype, device=semantic.device).view(1, -1, 1, 1)
        distances.append(torch.norm(semantic - code, dim=1).mean(dim=(1, 2)))
    return torch.stack(distances, dim=1)
