# mypy: ignore-errors
# (kernel bodies are compiled, not executed: their names have no Python types)
"""Backward kernels of attention and their launcher; formula and memory traffic stand in `_triton.py`."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.offsets import offset_type
from msf_kernels.spatial_attention._allocation import empty_gradient
from msf_kernels.spatial_attention._triton_tile import (
    head_arguments,
    is_matmul,
    load_tokens,
    masked_scores,
    score_scale,
    store_tokens,
    with_even_channels,
)


@triton.jit
def _spatial_attention_bwd_delta_kernel(
    delta_ptr, grad_out_ptr, out_ptr,
    n_tokens, num_heads, stride_grad_n, stride_grad_t,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, OFFSET_TYPE: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Leave sum_d out * grad_out of each row; [N, H, T]."""
    pid = tl.program_id(0)
    n_row_blocks = tl.cdiv(n_tokens, BLOCK_Q)
    first = pid % n_row_blocks * BLOCK_Q
    pid_head = pid // n_row_blocks % num_heads
    pid_n = (pid // n_row_blocks // num_heads).to(tl.int64)
    stride_out_t = num_heads * HEAD_DIM
    head_out_ptr = out_ptr + pid_n * n_tokens * stride_out_t + pid_head * HEAD_DIM
    head_grad_ptr = grad_out_ptr + pid_n * stride_grad_n + pid_head * HEAD_DIM

    out = load_tokens(head_out_ptr, first, n_tokens, stride_out_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
    grad = load_tokens(head_grad_ptr, first, n_tokens, stride_grad_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), axis=1)
    rows = first + tl.arange(0, BLOCK_Q)
    tl.store(delta_ptr + (pid_n * num_heads + pid_head) * n_tokens + rows, delta, mask=rows < n_tokens)


@triton.jit
def _spatial_attention_bwd_kv_kernel(
    grad_qkv_ptr, grad_out_ptr, qkv_ptr, lse_ptr, delta_ptr,
    n_tokens, num_heads, scale, scale_log2, stride_qkv_n, stride_qkv_t, stride_head, stride_part,
    stride_grad_n, stride_grad_t,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, OFFSET_TYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values: the probabilities, recomputed, stand on their side, [keys, queries]."""
    pid = tl.program_id(0)
    n_key_blocks = tl.cdiv(n_tokens, BLOCK_KV)
    first_key = pid % n_key_blocks * BLOCK_KV
    pid_head = pid // n_key_blocks % num_heads
    pid_n = (pid // n_key_blocks // num_heads).to(tl.int64)
    q_ptr = qkv_ptr + pid_n * stride_qkv_n + pid_head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part
    head_grad_ptr = grad_out_ptr + pid_n * stride_grad_n + pid_head * HEAD_DIM
    row_offs = (pid_n * num_heads + pid_head) * n_tokens

    k = load_tokens(k_ptr, first_key, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV)
    v = load_tokens(v_ptr, first_key, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV)
    # A key that does not exist has the score 0, and so an infinite weight where all others lie far below.
    key_exists = (first_key + tl.arange(0, BLOCK_KV) < n_tokens)[:, None]
    grad_k = tl.zeros([BLOCK_KV, BLOCK_DIM], tl.float32)
    grad_v = tl.zeros([BLOCK_KV, BLOCK_DIM], tl.float32)
    for first in range(0, n_tokens, BLOCK_Q):
        q = load_tokens(q_ptr, first, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
        rows = first + tl.arange(0, BLOCK_Q)
        # An infinite log-sum-exp takes rows that do not exist out of the sums.
        lse = tl.load(lse_ptr + row_offs + rows, mask=rows < n_tokens, other=float("inf"))
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2
        p = tl.exp2(tl.where(key_exists, scores - lse[None, :], float("-inf")))
        grad = load_tokens(head_grad_ptr, first, n_tokens, stride_grad_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
        grad_v = tl.dot(p.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
        grad_p = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        delta = tl.load(delta_ptr + row_offs + rows, mask=rows < n_tokens, other=0.0)
        grad_scores = p * (grad_p - delta[None, :])
        grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION)

    stride_grad_qkv_t = 3 * num_heads * HEAD_DIM
    head_grad_q_ptr = grad_qkv_ptr + pid_n * n_tokens * stride_grad_qkv_t + pid_head * stride_head
    store_tokens(
        head_grad_q_ptr + stride_part, grad_k * scale, first_key, n_tokens, stride_grad_qkv_t,
        OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV,
    )  # fmt: skip
    store_tokens(
        head_grad_q_ptr + 2 * stride_part, grad_v, first_key, n_tokens, stride_grad_qkv_t,
        OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV,
    )  # fmt: skip


@triton.jit
def _spatial_attention_bwd_q_kernel(
    grad_qkv_ptr, grad_out_ptr, qkv_ptr, lse_ptr, delta_ptr,
    n_tokens, num_heads, scale, scale_log2, stride_qkv_n, stride_qkv_t, stride_head, stride_part,
    stride_grad_n, stride_grad_t,
    HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, OFFSET_TYPE: tl.constexpr, PRECISION: tl.constexpr,
    IS_FULL: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_KV: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of queries; the probabilities are recomputed."""
    pid = tl.program_id(0)
    n_row_blocks = tl.cdiv(n_tokens, BLOCK_Q)
    first_row = pid % n_row_blocks * BLOCK_Q
    pid_head = pid // n_row_blocks % num_heads
    pid_n = (pid // n_row_blocks // num_heads).to(tl.int64)
    q_ptr = qkv_ptr + pid_n * stride_qkv_n + pid_head * stride_head
    k_ptr = q_ptr + stride_part
    v_ptr = k_ptr + stride_part
    head_grad_ptr = grad_out_ptr + pid_n * stride_grad_n + pid_head * HEAD_DIM

    q = load_tokens(q_ptr, first_row, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
    grad = load_tokens(head_grad_ptr, first_row, n_tokens, stride_grad_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q)
    rows = first_row + tl.arange(0, BLOCK_Q)
    row_offs = (pid_n * num_heads + pid_head) * n_tokens + rows
    lse = tl.load(lse_ptr + row_offs, mask=rows < n_tokens, other=0.0)
    delta = tl.load(delta_ptr + row_offs, mask=rows < n_tokens, other=0.0)
    grad_q = tl.zeros([BLOCK_Q, BLOCK_DIM], tl.float32)
    for first in range(0, n_tokens, BLOCK_KV):
        k = load_tokens(k_ptr, first, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        scores = masked_scores(scores, first, n_tokens, IS_FULL, BLOCK_KV)
        p = tl.exp2(scores - lse[:, None])
        v = load_tokens(v_ptr, first, n_tokens, stride_qkv_t, OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_KV)
        grad_p = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        grad_scores = p * (grad_p - delta[:, None])
        grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision=PRECISION)

    stride_grad_qkv_t = 3 * num_heads * HEAD_DIM
    head_grad_q_ptr = grad_qkv_ptr + pid_n * n_tokens * stride_grad_qkv_t + pid_head * stride_head
    store_tokens(
        head_grad_q_ptr, grad_q * scale, first_row, n_tokens, stride_grad_qkv_t,
        OFFSET_TYPE, HEAD_DIM, BLOCK_DIM, BLOCK_Q,
    )  # fmt: skip


def launch_spatial_attention_bwd(
    grad_out: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, num_heads: int, order: str
) -> Tensor:
    """Return the gradient of the packed tensor; [N, T, 3C]."""
    grad_qkv = empty_gradient(qkv)
    qkv, grad_out = with_even_channels(qkv), with_even_channels(grad_out)
    n, n_tokens, _ = qkv.shape
    if grad_qkv.numel() == 0:
        return grad_qkv
    delta = torch.empty_like(lse)
    heads = head_arguments(qkv, num_heads, order)
    heads["OFFSET_TYPE"] = offset_type(qkv, grad_out, grad_qkv)
    of_rows = {
        "grad_out_ptr": grad_out,
        "delta_ptr": delta,
        "stride_grad_n": grad_out.stride(0),
        "stride_grad_t": grad_out.stride(1),
    }
    launch(
        _spatial_attention_bwd_delta_kernel,
        (KernelConfig({"BLOCK_Q": 32}),),
        lambda blocks: (n * num_heads * triton.cdiv(n_tokens, blocks["BLOCK_Q"]),),
        out_ptr=out,
        n_tokens=n_tokens,
        num_heads=num_heads,
        HEAD_DIM=heads["HEAD_DIM"],
        BLOCK_DIM=heads["BLOCK_DIM"],
        OFFSET_TYPE=heads["OFFSET_TYPE"],
        **of_rows,
    )
    scale = score_scale(heads["HEAD_DIM"])
    shared = {
        "grad_qkv_ptr": grad_qkv,
        "qkv_ptr": qkv,
        "lse_ptr": lse,
        "scale": scale,
        "scale_log2": scale * math.log2(math.e),
        "configuration_key": (n_tokens, num_heads, order, qkv.dtype),
        "is_matmul": is_matmul(qkv),
        **of_rows,
        **heads,
    }
    launch(
        _spatial_attention_bwd_kv_kernel,
        _kv_configs(qkv.dtype, heads["BLOCK_DIM"]),
        lambda blocks: (n * num_heads * triton.cdiv(n_tokens, blocks["BLOCK_KV"]),),
        **shared,
    )
    q_configs = _q_configs(qkv.dtype, heads["BLOCK_DIM"])
    launch(
        _spatial_attention_bwd_q_kernel,
        q_configs,
        lambda blocks: (n * num_heads * triton.cdiv(n_tokens, blocks["BLOCK_Q"]),),
        IS_FULL=n_tokens % q_configs[0].blocks["BLOCK_KV"] == 0,
        **shared,
    )
    return grad_qkv


# Not measured on a GPU yet: the first is what runs unless tuning is switched on. All of a list sum in one order. In
# fp32 the operands of a row stay in registers, so that wider tiles spill; so do narrow heads in 8 warps on sm_90 in
# Triton 3.6 (8 bytes).
def _kv_configs(dtype: torch.dtype, block_dim: int) -> tuple[KernelConfig, ...]:
    if dtype == torch.float32:
        num_warps = 4 if block_dim <= 32 else 8
        return (KernelConfig({"BLOCK_Q": 32 if block_dim <= 64 else 16, "BLOCK_KV": 32}, num_warps=num_warps),)
    return (
        KernelConfig({"BLOCK_Q": 32, "BLOCK_KV": 64}, num_warps=4, num_stages=2),
        KernelConfig({"BLOCK_Q": 32, "BLOCK_KV": 64}, num_warps=4, num_stages=1),
    )


def _q_configs(dtype: torch.dtype, block_dim: int) -> tuple[KernelConfig, ...]:
    if dtype == torch.float32:
        block = 32 if block_dim <= 64 else 16
        return (KernelConfig({"BLOCK_Q": block, "BLOCK_KV": block}, num_warps=4 if block_dim <= 32 else 8),)
    return (
        KernelConfig({"BLOCK_Q": 64, "BLOCK_KV": 64}, num_warps=4, num_stages=2),
        KernelConfig({"BLOCK_Q": 64, "BLOCK_KV": 64}, num_warps=4, num_stages=1),
    )
