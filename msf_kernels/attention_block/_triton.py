# mypy: ignore-errors
"""The projections of the attention block in Triton, on the implicit matrix product with one tap.

    qkv = qkv_weight group_norm(x) + qkv_bias;   out = x + proj_weight mixed + proj_bias

The norm is a pass of its own; bias and residual are added where the products are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.implicit_gemm import launch_implicit_gemm
from msf_kernels._triton.recording import record_launches

__all__ = ["aot_cases", "launch_attention_block_projection"]


def launch_attention_block_projection(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    """Return weight x + bias + residual of every pixel; [N, C, H, W] -> [N, K, H, W], channels-last."""
    return launch_implicit_gemm(x, weight.contiguous()[None, :, None, None, :], bias, residual=residual)


# Channels, height = width: the networks' attention at 16x16 and 4x4, and up to 1024 tokens.
_AOT_CALLS = ((256, 16), (256, 4), (128, 16), (256, 32), (256, 8))


def aot_cases(arch: int) -> Iterator[AotCase]:
    """Yield the compilations of the networks' projections for an architecture."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for channels, side in _AOT_CALLS if dtype == torch.bfloat16 else _AOT_CALLS[:1]:

            def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
                return torch.empty(shape, dtype=dtype, device="meta")

            x = meta(64, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)
            label = f"attention_block {dtype} {channels}x{side}x{side}".replace("torch.", "")
            with record_launches(label, arch) as cases:
                qkv_weight, proj_weight = (meta(out, channels, dtype=dtype) for out in (3 * channels, channels))
                launch_attention_block_projection(x, qkv_weight, meta(3 * channels, dtype=dtype), None)
                launch_attention_block_projection(x, proj_weight, meta(channels, dtype=dtype), x)
            yield from cases
