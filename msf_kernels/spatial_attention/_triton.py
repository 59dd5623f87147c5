# mypy: ignore-errors
"""Self-attention over packed q, k, v in Triton.

Forward, per item and head, D channels per head, rows i and j of T tokens:

    s_ij = q_i . k_j / sqrt(D);   p_ij = exp(s_ij - lse_i),  lse_i = log sum_j exp(s_ij);   out_i = sum_j p_ij v_j

Backward, with g = grad_out, the saved lse and delta_i = sum_d out_i g_i (Dao et al., arXiv 2205.14135, appendix B):

    grad_v_j = sum_i p_ij g_i;   grad_s_ij = p_ij (g_i . v_j - delta_i) / sqrt(D)
    grad_q_i = sum_j grad_s_ij k_j;   grad_k_j = sum_i grad_s_ij q_i

q, k and v are read where they lie: a head's part begins at head * stride_head + part * stride_part of its token, which
covers both orders; the output is written [N, T, C], the gradient in the packing of the input. Exponentials are to base
2 (the scores carry the factor log2 e), and so is the saved lse. Head dimensions are padded to a power of two >= 16.

Where all keys of a head fit in one block, one program keeps k and v, walks over blocks of 64 queries and sees whole
rows: q, k, v are read once and out written once, 4 C values per token, and nothing is rescaled. Longer rows go through
a running maximum and sum, each block of queries reading k and v again (from the L2 cache). Backward has one kernel for
k and v, over blocks of keys, and one for q, over blocks of queries: no atomics, so every run gives the same bits.
fp32 inputs are multiplied in fp32, not TF32.
"""

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
    """Yield the compilations of the networks' attention, forward and backward, as on compute capability `arch`."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for n_tokens, num_heads, head_dim in _AOT_CALLS_FP32 if dtype == torch.float32 else _AOT_CALLS:
            channels = num_heads * head_dim
            qkv = torch.empty((8, n_tokens, 3 * channels), dtype=dtype, device="meta")
            label = f"spatial_attention {dtype} T={n_tokens} D={head_dim}".replace("torch.", "")
            with record_launches(label, arch) as cases:
                out, lse = launch_spatial_attention_fwd(qkv, num_heads, "legacy")
                launch_spatial_attention_bwd(out, out, lse, qkv, num_heads, "legacy")
            yield from cases
