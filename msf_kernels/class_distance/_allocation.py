"""Outputs of the distance's operators before they are filled: what kernels allocate and what fakes promise."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.memory_format import output_memory_format


def empty_distances(semantic: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for distance and votes; [N, n_classes] each."""
    dtype = torch.float64 if semantic.dtype == torch.float64 else torch.float32
    shape = (semantic.shape[0], codes.shape[0])
    distance, votes = (torch.empty(shape, dtype=dtype, device=semantic.device) for _ in range(2))
    return distance, votes


def empty_gradients(semantic: Tensor, codes: Tensor, needs_codes: bool) -> tuple[Tensor, Tensor]:
    """Return room for the gradients of semantic and codes; without `needs_codes` the second has no classes."""
    n_classes = codes.shape[0] if needs_codes else 0
    return (
        torch.empty(
            semantic.shape,
            dtype=semantic.dtype,
            device=semantic.device,
            memory_format=output_memory_format(semantic),
        ),
        torch.empty((n_classes, codes.shape[1]), dtype=codes.dtype, device=codes.device),
    )


def fake_class_distance_bwd(grad: Tensor, semantic: Tensor, codes: Tensor, needs_codes: bool) -> tuple[Tensor, Tensor]:
    """Return what `class_distance_bwd` of any family of operators allocates."""
    return empty_gradients(semantic, codes, needs_codes)
