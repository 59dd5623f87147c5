"""The symmetric probability path in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.memory_format import output_memory_format
from msf_kernels.philox_normal import IMAGE_STREAM, SEMANTIC_STREAM, philox_normal


def symmetric_path_reference(
    image: Tensor,
    semantic: Tensor,
    t: Tensor,
    *,
    sample_index: Tensor,
    seed: int,
    sigma_min: float = 1e-4,
) -> tuple[Tensor, Tensor]:
    """Compute what `msf_kernels.symmetric_path` documents; [N, C, H, W], [N, K, H, W] -> two of [N, C + K, H, W]."""
    memory_format = output_memory_format(image, semantic)
    dtype = torch.float64 if image.dtype == torch.float64 else torch.float32
    noise_image, noise_semantic = (
        philox_normal(sample_index, part.shape[1:], seed, stream=stream, dtype=dtype, backend="reference")
        for part, stream in ((image, IMAGE_STREAM), (semantic, SEMANTIC_STREAM))
    )
    t_image, t_semantic = time_per_stream(t.to(dtype))  # [N, 1, 1, 1] each
    keep, out_dtype = 1 - sigma_min, image.dtype
    image, semantic = image.to(dtype), semantic.to(dtype)
    z_image = (1 - keep * t_image) * noise_image + t_image * image
    z_semantic = (1 - keep * t_semantic) * semantic + t_semantic * noise_semantic
    dz_image = image - keep * noise_image
    dz_semantic = noise_semantic - keep * semantic
    z_t, dz_t = torch.cat([z_image, z_semantic], dim=1), torch.cat([dz_image, dz_semantic], dim=1)  # [N, C + K, H, W]
    z_t, dz_t = z_t.to(out_dtype), dz_t.to(out_dtype)
    return z_t.contiguous(memory_format=memory_format), dz_t.contiguous(memory_format=memory_format)


def path_gradients(
    grad_z: Tensor, grad_dz: Tensor, t: Tensor, sigma_min: float, n_image_channels: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of image and semantic channels: the path is linear in both; two of [N, C + K, H, W]."""
    dtype = torch.float64 if grad_z.dtype == torch.float64 else torch.float32
    t_image, t_semantic = time_per_stream(t.to(dtype))
    keep = 1 - sigma_min
    z, dz = grad_z.to(dtype), grad_dz.to(dtype)
    grad_image = t_image * z[:, :n_image_channels] + dz[:, :n_image_channels]
    grad_semantic = (1 - keep * t_semantic) * z[:, n_image_channels:] - keep * dz[:, n_image_channels:]
    return grad_image.to(grad_z.dtype), grad_semantic.to(grad_z.dtype)


def time_per_stream(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the times of image and semantic channels; [N] or [N, 2] -> two of [N, 1, 1, 1]."""
    t_image, t_semantic = (t, t) if t.dim() == 1 else t.unbind(1)
    return t_image[:, None, None, None], t_semantic[:, None, None, None]
