"""Outputs of the path's operators before they are filled: what kernels allocate and what fakes promise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msf_kernels.memory_format import output_memory_format


def empty_path(image: Tensor, semantic: Tensor) -> tuple[Tensor, Tensor]:
    """Return room for the joint state and its velocity; [N, C + K, H, W] each, with the same strides."""
    n, channels, height, width = image.shape
    shape = (n, channels + semantic.shape[1], height, width)
    memory_format = output_memory_format(image, semantic)
    z_t, dz_t = (
        torch.empty(shape, dtype=image.dtype, device=image.device, memory_format=memory_format) for _ in range(2)
    )
    return z_t, dz_t


def empty_gradients(grad_z: Tensor, n_image_channels: int) -> tuple[Tensor, Tensor]:
    """Return room for the gradients of image and semantic; [N, C, H, W] and [N, K, H, W]."""
    n, channels, height, width = grad_z.shape
    memory_format = output_memory_format(grad_z)
    grad_image, grad_semantic = (
        torch.empty((n, part, height, width), dtype=grad_z.dtype, device=grad_z.device, memory_format=memory_format)
        for part in (n_image_channels, channels - n_image_channels)
    )
    return grad_image, grad_semantic


def fake_symmetric_path_fwd(image: Tensor, semantic: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    """Return what `symmetric_path_fwd` of any family of operators allocates."""
    return empty_path(image, semantic)


def fake_symmetric_path_bwd(
    grad_z: Tensor, grad_dz: Tensor, t: Tensor, sigma_min: float, n_image_channels: int
) -> tuple[Tensor, Tensor]:
    """Return what `symmetric_path_bwd` of any family of operators allocates."""
    return empty_gradients(grad_z, n_image_channels)
