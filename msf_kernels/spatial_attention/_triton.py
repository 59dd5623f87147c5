# mypy: ignore-errors
"""Self-attention over packed q, k, v in Triton."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.recording import record_launches
from msf_kernels.spatial_attention._triton_bwd import launch_spatial_attention_bwd
from msf_kernels.spatial_attention._triton_fwd import launch_spatial_attention_fwd

__all__ = ["aot_cases", "launch_spatial_attention_bwd", "launch_spatial_attention_fwd"]

# Tokens, heads, channels per head: maps of 4x4 to 32x32, and every padded head dimension.
_AOT_CALLS = (
    (16, 4, 64),
    (49, 4, 64),
    (64, 4, 64),
    (196, 4, 64),
    (256, 4, 64),
    (784, 4, 64),
    (1024, 4, 64),
    (256, 8, 16),
    (1024, 8, 16),
    (256, 8, 32),
    (1024, 8, 32),
    (256, 4, 40),
    (1024, 4, 96),
    (64, 2, 128),
    (1024, 2, 128),
)

# Networks run in half precision where speed counts; in fp32 the kernels differ by head dimension only.
_AOT_CALLS_FP32 = ((64, 4, 64), (256, 8, 16), (256, 8, 32), (256, 4, 64), (1024, 2, 128))


def aot_cases(arch: int) -> Iterator[AotCase]:
    """Yield the compilations of the networks' attention, forward and backward; the same for every architecture."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for n_tokens, num_heads, head_dim in _AOT_CALLS_FP32 if dtype == torch.float32 else _AOT_CALLS:
            channels = num_heads * head_dim
            qkv = torch.empty((8, n_tokens, 3 * channels), dtype=dtype, device="meta")
            label = f"spatial_attention {dtype} T={n_tokens} D={head_dim}".replace("torch.", "")
            with record_launches(label) as cases:
                out, lse = launch_spatial_attention_fwd(qkv, num_heads, "legacy")
                launch_spatial_attention_bwd(out, out, lse, qkv, num_heads, "legacy")
            yield from cases
