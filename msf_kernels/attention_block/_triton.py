# mypy: ignore-errors
"""The fused halves of the attention block in Triton, on the implicit matrix product with one tap.

    qkv = qkv_weight (x * scale + shift) + qkv_bias,   scale and shift from the moments of x (`_triton.partial_moments`)
    out = x + proj_weight mixed + proj_bias

x is read once for its moments and once as an operand (where blocks of output channels follow each other, from the
caches); the normalised map is never stored, and the residual is added where the product is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.implicit_gemm import launch_implicit_gemm
from msf_kernels._triton.partial_moments import launch_map_moments, launch_norm_affine
from msf_kernels._triton.recording import record_launches

__all__ = ["aot_cases", "launch_attention_block_out", "launch_attention_block_qkv"]

_MAX_BUNDLE = 32


def launch_attention_block_qkv(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    num_groups: int,
    eps: float,
) -> Tensor:
    """Return the packed projections of the normalised map; [N, C, H, W] -> [N, T, 3C]."""
    group_channels = x.shape[1] // num_groups
    bundle = min(_MAX_BUNDLE, group_channels & -group_channels)  # the largest power of two that divides a group
    moments = launch_map_moments(x, bundle)
    scale, shift = launch_norm_affine(moments, num_groups, norm_weight, norm_bias, None, None, None, eps)
    qkv, _ = launch_implicit_gemm(x, _one_tap(qkv_weight), qkv_bias, scale=scale, shift=shift, silu=False)
    return qkv.permute(0, 2, 3, 1).flatten(1, 2)


def launch_attention_block_out(mixed: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Return x plus the projection; [N, T, C] and [N, C, H, W] -> [N, C, H, W], channels-last."""
    n, channels, height, width = x.shape
    mixed_map = mixed.view(n, height, width, channels).permute(0, 3, 1, 2)
    out, _ = launch_implicit_gemm(mixed_map, _one_tap(weight), bias, residual=x)
    return out


def _one_tap(weight: Tensor) -> Tensor:
    return weight.contiguous()[None, :, None, None, :]


# Channels, height = width: the networks' attention at 16x16 and 4x4, and up to 1024 tokens.
_AOT_CALLS = ((256, 16), (256, 4), (128, 16), (256, 32), (256, 8))


def aot_cases(arch: int) -> Iterator[AotCase]:
    """Yield the compilations of the networks' attention blocks; the same for every architecture."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for channels, side in _AOT_CALLS if dtype == torch.bfloat16 else _AOT_CALLS[:1]:

            def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
                return torch.empty(shape, dtype=dtype, device="meta")

            x = meta(8, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
            label = f"attention_block {dtype} {channels}x{side}x{side}".replace("torch.", "")
            with record_launches(label) as cases:
                vector, weight = meta(channels), meta(3 * channels, channels, dtype=dtype)
                launch_attention_block_qkv(x, vector, vector, weight, meta(3 * channels), 32, 1e-5)
                mixed = meta(8, side * side, channels, dtype=dtype)
                launch_attention_block_out(mixed, meta(channels, channels, dtype=dtype), vector, x)
            yield from cases
