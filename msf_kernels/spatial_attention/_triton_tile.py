# mypy: ignore-errors
# (kernel bodies are compiled, not executed: their names have no Python types)
"""What the forward and the backward kernels of attention share: where a head lies, and loading a tile of its tokens."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.offsets import offset_type

# Programs that keep a large GPU busy: with fewer, the query rows of a head are shared out among several.
WANTED_PROGRAMS = 1024


def head_arguments(qkv: Tensor, num_heads: int, order: str) -> dict[str, Any]:
    """Return the launch arguments that say where q, k and v of each head lie, and how a tile of them is computed."""
    n_tokens, packed = qkv.shape[1:]
    head_dim = packed // (3 * num_heads)
    is_legacy = order == "legacy"
    return {
        "n_tokens": n_tokens,
        "num_heads": num_heads,
        "stride_qkv_n": qkv.stride(0),
        "stride_qkv_t": qkv.stride(1),
        "stride_head": 3 * head_dim if is_legacy else head_dim,
        "stride_part": head_dim if is_legacy else num_heads * head_dim,
        "HEAD_DIM": head_dim,
        "BLOCK_DIM": max(16, triton.next_power_of_2(head_dim)),
        "OFFSET_TYPE": offset_type(qkv),
        # TF32 would round fp32 inputs to 10 bits.
        "PRECISION": "ieee" if qkv.dtype == torch.float32 else "tf32",
    }


def score_scale(head_dim: int) -> float:
    """Return what the scores are multiplied with."""
    return 1 / math.sqrt(head_dim)


def is_matmul(qkv: Tensor) -> bool:
    """Return whether the products run on tensor cores: fp32 stays fp32 and does not."""
    return qkv.dtype != torch.float32


def with_even_channels(x: Tensor) -> Tensor:
    """Return x itself if its channels are neighbours in memory, else a contiguous copy; [N, T, channels]."""
    return x if x.stride(2) == 1 else x.contiguous()


@triton.jit
def load_tokens(
    head_ptr, first, n_tokens, stride_t,
    OFFSET_TYPE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load a block of tokens of one head, zero outside of it; [BLOCK, BLOCK_DIM]."""
    tokens = first + tl.arange(0, BLOCK)
    dims = tl.arange(0, BLOCK_DIM)
    ptrs = head_ptr + tokens.to(OFFSET_TYPE)[:, None] * stride_t + dims[None, :]
    return tl.load(ptrs, mask=(tokens < n_tokens)[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store_tokens(
    head_ptr, values, first, n_tokens, stride_t,
    OFFSET_TYPE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a block of tokens of one head; [BLOCK, BLOCK_DIM]."""
    tokens = first + tl.arange(0, BLOCK)
    dims = tl.arange(0, BLOCK_DIM)
    ptrs = head_ptr + tokens.to(OFFSET_TYPE)[:, None] * stride_t + dims[None, :]
    inside = (tokens < n_tokens)[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(ptrs, values.to(head_ptr.dtype.element_ty), mask=inside)


@triton.jit
def masked_scores(scores, first, n_tokens, IS_FULL: tl.constexpr, BLOCK: tl.constexpr):
    """Take keys that do not exist out of the softmax; [rows, BLOCK]."""
    if IS_FULL:
        return scores
    else:
        return tl.where((first + tl.arange(0, BLOCK) < n_tokens)[None, :], scores, float("-inf"))
