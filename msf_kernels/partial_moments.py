"""Moments of a feature map in parts, from which the next normalisation is computed without reading the map again.

The map is cut into chunks of `CHUNK_PIXELS` pixels (row by row; of a map that was upsampled by two, phase by phase: all
pixels of even rows and even columns first, then even rows and odd columns, odd and even, odd and odd) and bundles of
neighbouring channels. Moments are [N, chunks, bundles, 3]: count, mean, and sum of squared deviations from the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_PIXELS = 64


def n_chunks_of(height: int, width: int, *, upsample: bool) -> int:
    """Return the number of chunks of a map of these sizes."""
    phases = 4 if upsample else 1
    return phases * -(-(height * width // phases) // CHUNK_PIXELS)


def empty_moments(out: Tensor, bundle: int, *, upsample: bool = False) -> Tensor:
    """Return room for the moments of a map [N, C, H, W]; no elements where `bundle` is 0."""
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    if not bundle:
        return torch.empty(0, dtype=dtype, device=out.device)
    n, channels, height, width = out.shape
    n_chunks = n_chunks_of(height, width, upsample=upsample)
    return torch.empty((n, n_chunks, channels // bundle, 3), dtype=dtype, device=out.device)


def map_moments(out: Tensor, bundle: int, *, upsample: bool = False) -> Tensor:
    """Return the moments of a map in plain PyTorch; [N, C, H, W] -> [N, chunks, C / bundle, 3].

    Args:
        out: Feature map; [N, C, H, W].
        bundle: Neighbouring channels that share moments; divides C.
        upsample: Whether the map came from upsampling by two, and is cut phase by phase.
    """
    n, channels, height, width = out.shape
    if not out.numel():
        return empty_moments(out, bundle, upsample=upsample)
    values = out.to(torch.float64 if out.dtype == torch.float64 else torch.float32)
    if upsample:
        phases = values.reshape(n, channels, height // 2, 2, width // 2, 2).permute(3, 5, 0, 1, 2, 4)
        parts = [part.flatten(2) for part in phases.flatten(0, 1)]
    else:
        parts = [values.flatten(2)]
    chunks = [
        _moments_of_chunk(chunk.reshape(n, channels // bundle, bundle * chunk.shape[2]))
        for part in parts
        for chunk in part.split(CHUNK_PIXELS, dim=2)
    ]
    return torch.stack(chunks, dim=1)


def _moments_of_chunk(values: Tensor) -> Tensor:
    """Return count, mean and squared deviation over the last axis; [N, bundles, M] -> [N, bundles, 3]."""
    variance, mean = torch.var_mean(values, dim=2, correction=0)
    count = torch.full_like(mean, values.shape[2])
    return torch.stack((count, mean, variance * count), dim=2)
