# mypy: ignore-errors
# (kernel bodies are compiled, not executed: their names have no Python types)
"""Backward kernels of the group norm and their launcher; formula and memory traffic stand in `_triton.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.offsets import offset_type
from msf_kernels._triton.rows import dense, row_stride
from msf_kernels.group_norm_silu._allocation import empty_gradients
from msf_kernels.group_norm_silu._triton_tile import (
    VALUES_PER_THREAD,
    input_arguments,
    launch_tiles,
    load_affine,
    load_features,
    load_row,
    plan_tiles,
    strides_named,
    sum_in_group,
    tile_indices,
    tile_pointers,
    with_even_pixels,
)
from msf_kernels.memory_format import output_memory_format

# Two tiles (xhat and dy) and twice the vectors per channel: a quarter of what forward can hold, or registers spill.
MAX_VALUES = 8192
# With a skip a value has two more addresses: with 16 values a thread float32 spills 16 bytes in Triton 3.6 on sm_90.
VALUES_PER_THREAD_OF_TWO_MAPS = 8


@triton.jit
def _load_recomputed(
    grad_out_ptr, mean_ptr, rstd_ptr,
    x_ptr, skip_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr,
    pid_n, pixels, channels, in_channels, in_tile, n_channels_x, n_groups,
    stride_grad_n, stride_grad_p, stride_grad_c, stride_x_n, stride_x_p, stride_x_c,
    stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n, stride_scale_n, stride_shift_n,
    SILU: tl.constexpr, CHANNELS_PER_GROUP: tl.constexpr,
):  # fmt: skip
    """Recompute xhat and dy of a tile (dy is zero outside of it); return them with weight * (1 + scale) and rstd."""
    x = load_features(
        x_ptr, skip_ptr, None, pid_n, pixels, channels, in_channels, in_tile, n_channels_x,
        stride_x_n, stride_x_p, stride_x_c, stride_skip_n, stride_skip_p, stride_skip_c, 0,
    )  # fmt: skip
    grad_ptrs = tile_pointers(grad_out_ptr, pid_n, pixels, channels, stride_grad_n, stride_grad_p, stride_grad_c)
    dy = tl.load(grad_ptrs, mask=in_tile, other=0.0).to(tl.float32)
    group_offs = pid_n * n_groups + channels // CHANNELS_PER_GROUP
    mean = tl.load(mean_ptr + group_offs, mask=in_channels, other=0.0)
    centre = mean - load_row(add_ptr, pid_n, stride_add_n, channels, in_channels)
    rstd = tl.load(rstd_ptr + group_offs, mask=in_channels, other=0.0)
    weight, bias, scale, shift = load_affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, pid_n, channels, in_channels, stride_scale_n, stride_shift_n
    )
    xhat = (x - centre[:, None]) * rstd[:, None]
    if SILU:
        y = xhat * (weight * scale)[:, None] + (bias * scale + shift)[:, None]
        sigmoid = tl.sigmoid(y)
        dy = dy * sigmoid * (1.0 + y * (1.0 - sigmoid))
    return xhat, dy, weight * scale, rstd


@triton.jit
def _sum_over_pixels(sum_ptrs, values, in_channels, HAS_SUMS: tl.constexpr):
    """Sum the tile over its pixels and leave the sum, or load the sum over all pixels; [BLOCK_CHANNELS]."""
    if HAS_SUMS:
        total = tl.load(sum_ptrs, mask=in_channels, other=0.0)
    else:
        total = tl.sum(values, axis=1)
        tl.store(sum_ptrs, total, mask=in_channels)
    return total


@triton.jit
def _group_norm_silu_bwd_sums_kernel(
    sums_ptr,
    grad_out_ptr, mean_ptr, rstd_ptr,
    x_ptr, skip_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr,
    n_blocks, n_chunks, n_pixels, n_channels, n_channels_x, n_groups,
    stride_grad_n, stride_grad_p, stride_grad_c, stride_x_n, stride_x_p, stride_x_c,
    stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n, stride_scale_n, stride_shift_n,
    SILU: tl.constexpr, OFFSET_TYPE: tl.constexpr, CHANNELS_PER_GROUP: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Leave sum dy, sum dy xhat and sum xhat over one chunk of pixels; [N, n_chunks, 3, C]."""
    pid = tl.program_id(0)
    pid_chunk = pid % n_chunks
    pid_block = pid // n_chunks % n_blocks
    pid_n = (pid // n_chunks // n_blocks).to(tl.int64)
    pixels, channels, in_channels, in_tile = tile_indices(
        pid_block, pid_chunk, n_pixels, n_channels,
        OFFSET_TYPE, CHANNELS_PER_GROUP, GROUPS, BLOCK_PIXELS, BLOCK_CHANNELS,
    )  # fmt: skip

    xhat, dy, _factor, _rstd = _load_recomputed(
        grad_out_ptr, mean_ptr, rstd_ptr,
        x_ptr, skip_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr,
        pid_n, pixels, channels, in_channels, in_tile, n_channels_x, n_groups,
        stride_grad_n, stride_grad_p, stride_grad_c, stride_x_n, stride_x_p, stride_x_c,
        stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n, stride_scale_n, stride_shift_n,
        SILU, CHANNELS_PER_GROUP,
    )  # fmt: skip

    sum_ptrs = sums_ptr + (pid_n * n_chunks + pid_chunk) * 3 * n_channels + channels
    _sum_over_pixels(sum_ptrs, dy, in_channels, False)
    _sum_over_pixels(sum_ptrs + n_channels, dy * xhat, in_channels, False)
    _sum_over_pixels(sum_ptrs + 2 * n_channels, tl.where(in_tile, xhat, 0.0), in_channels, False)


@triton.jit
def _group_norm_silu_bwd_kernel(
    grad_x_ptr, grad_skip_ptr, group_means_ptr, sums_ptr,
    grad_out_ptr, mean_ptr, rstd_ptr,
    x_ptr, skip_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr,
    n_blocks, n_chunks, n_pixels, n_channels, n_channels_x, n_groups,
    stride_dx_n, stride_dx_p, stride_dx_c, stride_dskip_n, stride_dskip_p, stride_dskip_c,
    stride_grad_n, stride_grad_p, stride_grad_c, stride_x_n, stride_x_p, stride_x_c,
    stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n, stride_scale_n, stride_shift_n,
    HAS_SUMS: tl.constexpr, SILU: tl.constexpr, OFFSET_TYPE: tl.constexpr,
    CHANNELS_PER_GROUP: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Leave grad_h of one tile and three group means; without HAS_SUMS the tile is complete and leaves the sums."""
    pid = tl.program_id(0)
    pid_chunk = pid % n_chunks
    pid_block = pid // n_chunks % n_blocks
    pid_n = (pid // n_chunks // n_blocks).to(tl.int64)
    pixels, channels, in_channels, in_tile = tile_indices(
        pid_block, pid_chunk, n_pixels, n_channels,
        OFFSET_TYPE, CHANNELS_PER_GROUP, GROUPS, BLOCK_PIXELS, BLOCK_CHANNELS,
    )  # fmt: skip

    xhat, dy, factor, rstd = _load_recomputed(
        grad_out_ptr, mean_ptr, rstd_ptr,
        x_ptr, skip_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr,
        pid_n, pixels, channels, in_channels, in_tile, n_channels_x, n_groups,
        stride_grad_n, stride_grad_p, stride_grad_c, stride_x_n, stride_x_p, stride_x_c,
        stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n, stride_scale_n, stride_shift_n,
        SILU, CHANNELS_PER_GROUP,
    )  # fmt: skip

    sum_ptrs = sums_ptr + pid_n * 3 * n_channels + channels
    n_values = (n_pixels * CHANNELS_PER_GROUP).to(tl.float32)
    # The saved mean is rounded, so that xhat - residual, not xhat, sums to zero over the group.
    sum_xhat = _sum_over_pixels(sum_ptrs + 2 * n_channels, tl.where(in_tile, xhat, 0.0), in_channels, HAS_SUMS)
    residual = sum_in_group(sum_xhat, CHANNELS_PER_GROUP, GROUPS, BLOCK_CHANNELS) / n_values
    sum_dy = _sum_over_pixels(sum_ptrs, dy, in_channels, HAS_SUMS)
    mean_dxhat = sum_in_group(factor * sum_dy, CHANNELS_PER_GROUP, GROUPS, BLOCK_CHANNELS) / n_values
    sum_dy_xhat = _sum_over_pixels(sum_ptrs + n_channels, dy * xhat, in_channels, HAS_SUMS)
    mean_dxhat_xhat = sum_in_group(factor * sum_dy_xhat, CHANNELS_PER_GROUP, GROUPS, BLOCK_CHANNELS) / n_values
    mean_dxhat_xhat -= residual * mean_dxhat
    group_ptrs = group_means_ptr + pid_n * 3 * n_groups + channels // CHANNELS_PER_GROUP
    # Every chunk writes the same bits.
    is_first = in_channels & (channels % CHANNELS_PER_GROUP == 0)
    tl.store(group_ptrs, mean_dxhat, mask=is_first)
    tl.store(group_ptrs + n_groups, mean_dxhat_xhat, mask=is_first)
    tl.store(group_ptrs + 2 * n_groups, residual, mask=is_first)
    offset = rstd * (mean_dxhat - residual * mean_dxhat_xhat)
    dh = dy * (rstd * factor)[:, None] - offset[:, None] - xhat * (rstd * mean_dxhat_xhat)[:, None]

    dx_ptrs = tile_pointers(grad_x_ptr, pid_n, pixels, channels, stride_dx_n, stride_dx_p, stride_dx_c)
    if grad_skip_ptr is None:
        tl.store(dx_ptrs, dh.to(grad_x_ptr.dtype.element_ty), mask=in_tile)
    else:
        in_x = in_tile & (channels < n_channels_x)[:, None]
        in_skip = in_tile & (channels >= n_channels_x)[:, None]
        dskip_ptrs = tile_pointers(
            grad_skip_ptr, pid_n, pixels, channels - n_channels_x, stride_dskip_n, stride_dskip_p, stride_dskip_c
        )  # fmt: skip
        tl.store(dx_ptrs, dh.to(grad_x_ptr.dtype.element_ty), mask=in_x)
        tl.store(dskip_ptrs, dh.to(grad_skip_ptr.dtype.element_ty), mask=in_skip)


@triton.jit
def _store_rows(rows_ptr, values, items, channels, in_rows, n_channels):
    """Store one gradient per item; [BLOCK_ITEMS, BLOCK_CHANNELS]."""
    if rows_ptr is not None:
        ptrs = rows_ptr + items[:, None] * n_channels + channels[None, :]
        tl.store(ptrs, values.to(rows_ptr.dtype.element_ty), mask=in_rows)


@triton.jit
def _group_norm_silu_bwd_rows_kernel(
    grad_weight_ptr, grad_bias_ptr, grad_add_ptr, grad_scale_ptr, grad_shift_ptr,
    sums_ptr, group_means_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr,
    n_items, n_pixels, n_channels, n_groups, stride_scale_n,
    CHANNELS_PER_GROUP: tl.constexpr, BLOCK_ITEMS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Turn the sums of every item into the gradients of weight, bias, add, scale and shift; items in a fixed order."""
    channels = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channels < n_channels
    groups = channels // CHANNELS_PER_GROUP
    weight = load_row(weight_ptr, 0, 0, channels, in_channels)[None, :]
    bias = load_row(bias_ptr, 0, 0, channels, in_channels)[None, :]
    total_weight = tl.zeros([BLOCK_CHANNELS], tl.float32)
    total_bias = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for first in range(0, n_items, BLOCK_ITEMS):
        items = (first + tl.arange(0, BLOCK_ITEMS)).to(tl.int64)
        in_rows = (items < n_items)[:, None] & in_channels[None, :]
        sum_ptrs = sums_ptr + items[:, None] * 3 * n_channels + channels[None, :]
        group_ptrs = group_means_ptr + items[:, None] * 3 * n_groups + groups[None, :]
        residual = tl.load(group_ptrs + 2 * n_groups, mask=in_rows, other=0.0)
        sum_dy = tl.load(sum_ptrs, mask=in_rows, other=0.0)
        sum_dy_xhat = tl.load(sum_ptrs + n_channels, mask=in_rows, other=0.0) - residual * sum_dy
        scale = 1.0
        if scale_ptr is not None:
            scale_ptrs = scale_ptr + items[:, None] * stride_scale_n + channels[None, :]
            scale = 1.0 + tl.load(scale_ptrs, mask=in_rows, other=0.0).to(tl.float32)
        total_weight += tl.sum(scale * sum_dy_xhat, axis=0)
        total_bias += tl.sum(scale * sum_dy, axis=0)

        if grad_add_ptr is not None:
            sum_xhat = tl.load(sum_ptrs + 2 * n_channels, mask=in_rows, other=0.0)
            sum_xhat -= n_pixels.to(tl.float32) * residual
            lost = n_pixels.to(tl.float32) * tl.load(group_ptrs, mask=in_rows, other=0.0)
            lost += sum_xhat * tl.load(group_ptrs + n_groups, mask=in_rows, other=0.0)
            rstd = tl.load(rstd_ptr + items[:, None] * n_groups + groups[None, :], mask=in_rows, other=0.0)
            of_add = rstd * (weight * scale * sum_dy - lost)
            _store_rows(grad_add_ptr, of_add, items, channels, in_rows, n_channels)
        of_scale = weight * sum_dy_xhat + bias * sum_dy
        _store_rows(grad_scale_ptr, of_scale, items, channels, in_rows, n_channels)
        _store_rows(grad_shift_ptr, sum_dy, items, channels, in_rows, n_channels)

    tl.store(grad_weight_ptr + channels, total_weight.to(grad_weight_ptr.dtype.element_ty), mask=in_channels)
    tl.store(grad_bias_ptr + channels, total_bias.to(grad_bias_ptr.dtype.element_ty), mask=in_channels)


def launch_group_norm_silu_bwd(
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, bias, skip, add, scale, shift; of an absent one, an empty tensor."""
    weight, bias, add, scale, shift = (dense(rows) for rows in (weight, bias, add, scale, shift))
    grads = empty_gradients(x, weight, bias, skip, add, scale, shift)
    grad_x, grad_weight, grad_bias, grad_skip, *row_grads = grads
    n, _, height, width = x.shape
    n_channels = weight.shape[0]
    if grad_out.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    memory_format = output_memory_format(x)
    x = with_even_pixels(x, memory_format)
    skip = None if skip is None else with_even_pixels(skip, memory_format)
    grad_out = with_even_pixels(grad_out, memory_format)
    values_per_thread = VALUES_PER_THREAD if skip is None else VALUES_PER_THREAD_OF_TWO_MAPS
    plan = plan_tiles(
        height * width, n_channels, num_groups, x.element_size(), MAX_VALUES, values_per_thread=values_per_thread
    )
    inputs = input_arguments(x, num_groups, weight, bias, skip, add, scale, shift, plan)
    inputs |= {"grad_out_ptr": grad_out, "mean_ptr": mean, "rstd_ptr": rstd, **strides_named("grad", grad_out)}
    inputs |= {"SILU": silu, "OFFSET_TYPE": offset_type(x, skip, grad_out, grad_x)}
    sums = torch.empty((n, plan.n_chunks, 3, n_channels), dtype=torch.float32, device=x.device)
    if plan.n_chunks > 1:
        launch_tiles(_group_norm_silu_bwd_sums_kernel, n, plan, {"sums_ptr": sums, **inputs})
        sums = sums.sum(dim=1)  # [N, 3, C]; in a fixed order
    group_means = torch.empty((n, 3, num_groups), dtype=torch.float32, device=x.device)
    sum_args = {"sums_ptr": sums, "group_means_ptr": group_means}
    outputs = {
        "grad_x_ptr": grad_x,
        "grad_skip_ptr": None if skip is None else grad_skip,
        **strides_named("dx", grad_x),
        **strides_named("dskip", None if skip is None else grad_skip),
    }
    flags = {"HAS_SUMS": plan.n_chunks > 1}
    launch_tiles(_group_norm_silu_bwd_kernel, n, plan, outputs | sum_args | inputs | flags)
    # Items that share a row share its gradient: the kernel leaves one per item, the sum follows.
    row_grads = [None if given is None else grad for given, grad in zip((add, scale, shift), row_grads, strict=True)]
    is_shared = [grad is not None and grad.shape[0] != n for grad in row_grads]
    per_item = [
        torch.empty((n, n_channels), dtype=torch.float32, device=x.device) if shared else grad
        for shared, grad in zip(is_shared, row_grads, strict=True)
    ]
    launch(
        _group_norm_silu_bwd_rows_kernel,
        (KernelConfig({"BLOCK_ITEMS": 16, "BLOCK_CHANNELS": 32}),),
        lambda blocks: (triton.cdiv(n_channels, blocks["BLOCK_CHANNELS"]),),
        grad_weight_ptr=grad_weight,
        grad_bias_ptr=grad_bias,
        grad_add_ptr=per_item[0],
        grad_scale_ptr=per_item[1],
        grad_shift_ptr=per_item[2],
        **sum_args,
        rstd_ptr=rstd,
        weight_ptr=weight,
        bias_ptr=bias,
        scale_ptr=scale,
        n_items=n,
        n_pixels=height * width,
        n_channels=n_channels,
        n_groups=num_groups,
        stride_scale_n=row_stride(scale),
        CHANNELS_PER_GROUP=n_channels // num_groups,
    )
    for shared, grad, items in zip(is_shared, row_grads, per_item, strict=True):
        if shared:
            grad.copy_(items.sum(dim=0, keepdim=True))
    return grads
