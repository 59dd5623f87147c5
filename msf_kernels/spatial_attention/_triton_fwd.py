# mypy: ignore-errors
# (kernel bodies are compiled, not executed: their names have no Python types)
"""Forward kernels of attention and their launcher; formula and memory traffic stand in `_triton.py`."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.recording import compute_capability
from msf_kernels.spatial_attention._allocation import empty_outputs
from msf_kernels.spatial_attention._triton_tile import (
    WANTED_PROGRAMS,
    head_arguments,
    is_matmul,
    load_tokens,
    masked_scores,
    score_scale,
    store_tokens,
    with_even_channels,
)


@triton.jit
def _spatial_attention_fwd_row_kernel(
    out_ptr, lse_ptr, qkv_ptr,
    n_tokens, num_heads, n_shares, scale_log2, stride_qkv_n, stride_qkv_t, stride_head, stride_part,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, OFFSET_TYPE: tl.constexpr, PRECISION: tl.constexpr,
    IS_FULL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr,
):  # fmt: skip
    """Attend with all keys of a head in one block: they are read once, and the softmax sees whole rows."""
    pid = tl.program_id(0)
    pid_share = pid % n_shares
    pid_head = pid // n_shares % num_heads
    pid_n = (pid // n_shares // num_heads).to(tl.int64)
    q_ptr = qkv_ptr + pid_n * stride_qkv_n + pid_head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part
    stride_out_t = num_heads * HEAD_DIM
    head_out_ptr = out_ptr + pid_n * n_tokens * stride_out_t + pid_head * HEAD_DIM
    head_lse_ptr = lse_ptr + (pid_n * num_heads + pid_head) * n_tokens

    k = load_tokens(k_ptr, 0, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV)
    v = load_tokens(v_ptr, 0, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV)
    for first in range(pid_share * BLOCK_Q, n_tokens, n_shares * BLOCK_Q):
        q = load_tokens(q_ptr, first, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = masked_scores(scores, 0, n_tokens, IS_FULL, BLOCK_KV)
        # The scale is positive, so it may come after the maximum: one multiply-add per score for it and the maximum.
        largest = tl.max(scores, axis=1) * scale_log2
        p = tl.exp2(scores * scale_log2 - largest[:, None])
        total = tl.sum(p, axis=1)
        out = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) / total[:, None]
        store_tokens(head_out_ptr, out, first, n_tokens, stride_out_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
        rows = first + tl.arange(0, BLOCK_Q)
        tl.store(head_lse_ptr + rows, largest + tl.log2(total), mask=rows < n_tokens)


@triton.jit
def _spatial_attention_fwd_online_kernel(
    out_ptr, lse_ptr, qkv_ptr,
    n_tokens, num_heads, scale_log2, stride_qkv_n, stride_qkv_t, stride_head, stride_part,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, OFFSET_TYPE: tl.constexpr, PRECISION: tl.constexpr,
    IS_FULL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr,
):  # fmt: skip
    """Attend block of keys by block of keys, with a running maximum and sum."""
    pid = tl.program_id(0)
    n_row_blocks = tl.cdiv(n_tokens, BLOCK_Q)
    first_row = pid % n_row_blocks * BLOCK_Q
    pid_head = pid // n_row_blocks % num_heads
    pid_n = (pid // n_row_blocks // num_heads).to(tl.int64)
    q_ptr = qkv_ptr + pid_n * stride_qkv_n + pid_head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part

    q = load_tokens(q_ptr, first_row, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
    largest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    out = tl.zeros([BLOCK_Q, BLOCK_DIM], tl.float32)
    for first in range(0, n_tokens, BLOCK_KV):
        k = load_tokens(k_ptr, first, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = masked_scores(scores, first, n_tokens, IS_FULL, BLOCK_KV)
        larger = tl.maximum(largest, tl.max(scores, axis=1) * scale_log2)
        p = tl.exp2(scores * scale_log2 - larger[:, None])
        shrink = tl.exp2(largest - larger)
        total = total * shrink + tl.sum(p, axis=1)
        v = load_tokens(v_ptr, first, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV)
        out = tl.dot(p.to(v.dtype), v, out * shrink[:, None], input_precision=PRECISION)
        largest = larger

    stride_out_t = num_heads * HEAD_DIM
    head_out_ptr = out_ptr + pid_n * n_tokens * stride_out_t + pid_head * HEAD_DIM
    out = out / total[:, None]
    store_tokens(head_out_ptr, out, first_row, n_tokens, stride_out_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
    rows = first_row + tl.arange(0, BLOCK_Q)
    head_lse_ptr = lse_ptr + (pid_n * num_heads + pid_head) * n_tokens
    tl.store(head_lse_ptr + rows, largest + tl.log2(total), mask=rows < n_tokens)


def launch_spatial_attention_fwd(qkv: Tensor, num_heads: int, order: str) -> tuple[Tensor, Tensor]:
    """Return out [N, T, C] and the log-sum-exp of every row of scores, to base 2, [N, H, T]."""
    out, lse = empty_outputs(qkv, num_heads)
    if out.numel() == 0:
        return out, lse
    qkv = with_even_channels(qkv)
    n, n_tokens, _ = qkv.shape
    heads = head_arguments(qkv, num_heads, order)
    arguments = {
        "out_ptr": out,
        "lse_ptr": lse,
        "qkv_ptr": qkv,
        "scale_log2": score_scale(heads["HEAD_DIM"]) * math.log2(math.e),
        "is_matmul": is_matmul(qkv),
        **heads,
    }
    block_dim = heads["BLOCK_DIM"]
    block_kv = _row_block(qkv.dtype, n_tokens, heads["HEAD_DIM"], compute_capability(qkv.device))
    if block_kv is not None:
        configs = _row_configs(qkv.dtype, block_kv)
        n_row_blocks = triton.cdiv(n_tokens, configs[0].blocks["BLOCK_Q"])
        n_shares = max(1, min(n_row_blocks, WANTED_PROGRAMS // (n * num_heads)))
        launch(
            _spatial_attention_fwd_row_kernel,
            configs,
            lambda _blocks: (n * num_heads * n_shares,),
            configuration_key=(n_tokens, num_heads, order, qkv.dtype),
            n_shares=n_shares,
            IS_FULL=n_tokens == block_kv,
            **arguments,
        )
    else:
        configs = _online_configs(qkv.dtype, block_dim)
        launch(
            _spatial_attention_fwd_online_kernel,
            configs,
            lambda blocks: (n * num_heads * triton.cdiv(n_tokens, blocks["BLOCK_Q"]),),
            configuration_key=(n_tokens, num_heads, order, qkv.dtype),
            IS_FULL=n_tokens % configs[0].blocks["BLOCK_KV"] == 0,
            **arguments,
        )
    return out, lse


def _row_block(dtype: torch.dtype, n_tokens: int, head_dim: int, capability: int | None) -> int | None:
    """Return the block of keys that holds a whole row, or None where its scores would not fit in registers."""
    block_kv = max(16, triton.next_power_of_2(n_tokens))
    if dtype == torch.float32:
        longest = 64 if head_dim <= 64 else 32
    elif n_tokens == 256 and head_dim in (16, 32, 64) and (capability is None or capability >= 90):
        longest = 256  # neither rows nor channels need a mask, and operands of wgmma stay in shared memory
    else:
        longest = 128
    return block_kv if block_kv <= longest else None


# Not measured on a GPU yet: the first is what runs unless tuning is switched on. All of a list have one block of keys,
# so that a row is summed in one order.
def _row_configs(dtype: torch.dtype, block_kv: int) -> tuple[KernelConfig, ...]:
    if dtype == torch.float32:
        return (KernelConfig({"BLOCK_Q": 16, "BLOCK_KV": block_kv}, num_warps=4),)
    candidates = (
        KernelConfig({"BLOCK_Q": 64, "BLOCK_KV": block_kv}, num_warps=4, num_stages=2),
        KernelConfig({"BLOCK_Q": 64, "BLOCK_KV": block_kv}, num_warps=4, num_stages=1),
        KernelConfig({"BLOCK_Q": 128, "BLOCK_KV": block_kv}, num_warps=8, num_stages=2),
    )
    # Of 256 keys the scores fill the registers: with loads in flight beside them 64 channels spill 8 bytes on sm_90.
    return candidates[1:] if block_kv > 128 else candidates


def _online_configs(dtype: torch.dtype, block_dim: int) -> tuple[KernelConfig, ...]:
    if dtype == torch.float32:
        return (KernelConfig({"BLOCK_Q": 32, "BLOCK_KV": 32 if block_dim <= 64 else 16}, num_warps=4),)
    wide = KernelConfig({"BLOCK_Q": 128, "BLOCK_KV": 64}, num_warps=8, num_stages=2)
    narrow = KernelConfig({"BLOCK_Q": 64, "BLOCK_KV": 64}, num_warps=4, num_stages=2)
    return (wide, narrow) if block_dim >= 64 else (wide,)
