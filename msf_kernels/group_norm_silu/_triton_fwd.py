# mypy: ignore-errors
# (kernel bodies are compiled, not executed: their names have no Python types)
"""Forward kernels of the group norm and their launcher; formula and memory traffic stand in `_triton.py`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.activation import has_fast_silu
from msf_kernels._triton.activation import silu as apply_silu
from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.offsets import offset_type
from msf_kernels._triton.rows import dense
from msf_kernels.group_norm_silu._allocation import empty_outputs
from msf_kernels.group_norm_silu._triton_tile import (
    TilePlan,
    input_arguments,
    launch_tiles,
    load_affine,
    load_features,
    plan_tiles,
    strides_named,
    sum_in_group,
    tile_indices,
    tile_pointers,
    with_even_pixels,
)
from msf_kernels.memory_format import output_memory_format

# One tile of fp32 values, 64 for each thread of 16 warps, stays below the 128 registers that such a thread can have.
MAX_VALUES = 32768
SHARED_WARPS = 8


@triton.jit
def _tile_moments(
    h, in_tile, n_values, CHANNELS_PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):  # fmt: skip
    """Return mean, what rounding took from it, and sum of squared deviations of each channel's group in the tile."""
    total = sum_in_group(tl.sum(tl.where(in_tile, h, 0.0), axis=1), CHANNELS_PER_GROUP, GROUPS, BLOCK_CHANNELS)
    mean = total / n_values
    centred = tl.where(in_tile, h - mean[:, None], 0.0)
    residual = sum_in_group(tl.sum(centred, axis=1), CHANNELS_PER_GROUP, GROUPS, BLOCK_CHANNELS) / n_values
    squares = sum_in_group(tl.sum(centred * centred, axis=1), CHANNELS_PER_GROUP, GROUPS, BLOCK_CHANNELS)
    return mean, residual, squares - n_values * residual * residual


@triton.jit
def _group_norm_silu_fwd_stats_kernel(
    chunk_mean_ptr, chunk_residual_ptr, chunk_deviation_ptr,
    x_ptr, skip_ptr, add_ptr,
    n_blocks, n_chunks, n_pixels, n_channels, n_channels_x, n_groups,
    stride_x_n, stride_x_p, stride_x_c, stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n,
    OFFSET_TYPE: tl.constexpr, CHANNELS_PER_GROUP: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Leave the moments of each group over one chunk of pixels; [N, n_chunks, n_groups]."""
    pid = tl.program_id(0)
    pid_chunk = pid % n_chunks
    pid_block = pid // n_chunks % n_blocks
    pid_n = (pid // n_chunks // n_blocks).to(tl.int64)
    pixels, channels, in_channels, in_tile = tile_indices(
        pid_block, pid_chunk, n_pixels, n_channels,
        OFFSET_TYPE, CHANNELS_PER_GROUP, GROUPS, BLOCK_PIXELS, BLOCK_CHANNELS,
    )  # fmt: skip

    h = load_features(
        x_ptr, skip_ptr, add_ptr, pid_n, pixels, channels, in_channels, in_tile, n_channels_x,
        stride_x_n, stride_x_p, stride_x_c, stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n,
    )  # fmt: skip

    n_pixels_here = tl.minimum(BLOCK_PIXELS, n_pixels - pid_chunk * BLOCK_PIXELS)
    n_values = (n_pixels_here * CHANNELS_PER_GROUP).to(tl.float32)
    mean, residual, deviation = _tile_moments(h, in_tile, n_values, CHANNELS_PER_GROUP, GROUPS, BLOCK_CHANNELS)

    offs = (pid_n * n_chunks + pid_chunk) * n_groups + channels // CHANNELS_PER_GROUP
    is_first = in_channels & (channels % CHANNELS_PER_GROUP == 0)
    tl.store(chunk_mean_ptr + offs, mean, mask=is_first)
    tl.store(chunk_residual_ptr + offs, residual, mask=is_first)
    tl.store(chunk_deviation_ptr + offs, deviation, mask=is_first)


@triton.jit
def _group_norm_silu_fwd_combine_kernel(
    mean_ptr, residual_ptr, rstd_ptr,
    chunk_mean_ptr, chunk_residual_ptr, chunk_deviation_ptr,
    n_chunks, n_pixels, n_groups, eps,
    CHANNELS_PER_GROUP: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr, BLOCK_GROUPS: tl.constexpr,
):  # fmt: skip
    """Combine the chunks of an item with Chan's formula, in a fixed order."""
    pid = tl.program_id(0)
    n_group_blocks = tl.cdiv(n_groups, BLOCK_GROUPS)
    pid_n = (pid // n_group_blocks).to(tl.int64)
    groups = pid % n_group_blocks * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    in_groups = groups < n_groups
    n_values = n_pixels.to(tl.float32) * CHANNELS_PER_GROUP
    first_mean = tl.load(chunk_mean_ptr + pid_n * n_chunks * n_groups + groups, mask=in_groups, other=0.0)

    # Relative to the first chunk's mean, so that the sum loses nothing to a mean that is large beside the deviation.
    shift = tl.zeros([BLOCK_GROUPS], tl.float32)
    squares = tl.zeros([BLOCK_GROUPS], tl.float32)
    for first in range(0, n_chunks, BLOCK_CHUNKS):
        chunks = first + tl.arange(0, BLOCK_CHUNKS)
        in_block = (chunks < n_chunks)[:, None] & in_groups[None, :]
        n_here = (tl.minimum(BLOCK_PIXELS, n_pixels - chunks * BLOCK_PIXELS) * CHANNELS_PER_GROUP).to(tl.float32)
        offs = (pid_n * n_chunks + chunks[:, None]) * n_groups + groups[None, :]
        distance = tl.load(chunk_mean_ptr + offs, mask=in_block, other=0.0) - first_mean[None, :]
        distance += tl.load(chunk_residual_ptr + offs, mask=in_block, other=0.0)
        shift += tl.sum(tl.where(in_block, distance * n_here[:, None], 0.0), axis=0)
    shift = shift / n_values
    for first in range(0, n_chunks, BLOCK_CHUNKS):
        chunks = first + tl.arange(0, BLOCK_CHUNKS)
        in_block = (chunks < n_chunks)[:, None] & in_groups[None, :]
        n_here = (tl.minimum(BLOCK_PIXELS, n_pixels - chunks * BLOCK_PIXELS) * CHANNELS_PER_GROUP).to(tl.float32)
        offs = (pid_n * n_chunks + chunks[:, None]) * n_groups + groups[None, :]
        distance = tl.load(chunk_mean_ptr + offs, mask=in_block, other=0.0) - first_mean[None, :]
        distance += tl.load(chunk_residual_ptr + offs, mask=in_block, other=0.0) - shift[None, :]
        inside = tl.load(chunk_deviation_ptr + offs, mask=in_block, other=0.0)
        squares += tl.sum(tl.where(in_block, inside + distance * distance * n_here[:, None], 0.0), axis=0)

    offs = pid_n * n_groups + groups
    mean = first_mean + shift
    tl.store(mean_ptr + offs, mean, mask=in_groups)
    tl.store(residual_ptr + offs, (first_mean - mean) + shift, mask=in_groups)
    tl.store(rstd_ptr + offs, 1.0 / tl.sqrt_rn(squares / n_values + eps), mask=in_groups)


@triton.jit
def _group_norm_silu_fwd_kernel(
    out_ptr, mean_ptr, residual_ptr, rstd_ptr,
    x_ptr, skip_ptr, weight_ptr, bias_ptr, add_ptr, scale_ptr, shift_ptr,
    n_blocks, n_chunks, n_pixels, n_channels, n_channels_x, n_groups, eps,
    stride_out_n, stride_out_p, stride_out_c, stride_x_n, stride_x_p, stride_x_c,
    stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n, stride_scale_n, stride_shift_n,
    HAS_STATS: tl.constexpr, SILU: tl.constexpr, FAST_SILU: tl.constexpr, OFFSET_TYPE: tl.constexpr,
    CHANNELS_PER_GROUP: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Normalise one tile. Without HAS_STATS it holds all pixels, and mean and rstd are left for backward."""
    pid = tl.program_id(0)
    pid_chunk = pid % n_chunks
    pid_block = pid // n_chunks % n_blocks
    pid_n = (pid // n_chunks // n_blocks).to(tl.int64)
    pixels, channels, in_channels, in_tile = tile_indices(
        pid_block, pid_chunk, n_pixels, n_channels,
        OFFSET_TYPE, CHANNELS_PER_GROUP, GROUPS, BLOCK_PIXELS, BLOCK_CHANNELS,
    )  # fmt: skip

    h = load_features(
        x_ptr, skip_ptr, add_ptr, pid_n, pixels, channels, in_channels, in_tile, n_channels_x,
        stride_x_n, stride_x_p, stride_x_c, stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n,
    )  # fmt: skip
    weight, bias, scale, shift = load_affine(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, pid_n, channels, in_channels, stride_scale_n, stride_shift_n
    )
    group_offs = pid_n * n_groups + channels // CHANNELS_PER_GROUP

    if HAS_STATS:
        mean = tl.load(mean_ptr + group_offs, mask=in_channels, other=0.0)
        residual = tl.load(residual_ptr + group_offs, mask=in_channels, other=0.0)
        rstd = tl.load(rstd_ptr + group_offs, mask=in_channels, other=0.0)
    else:
        n_values = (n_pixels * CHANNELS_PER_GROUP).to(tl.float32)
        mean, residual, deviation = _tile_moments(h, in_tile, n_values, CHANNELS_PER_GROUP, GROUPS, BLOCK_CHANNELS)
        rstd = 1.0 / tl.sqrt_rn(deviation / n_values + eps)
        is_first = in_channels & (channels % CHANNELS_PER_GROUP == 0)
        tl.store(mean_ptr + group_offs, mean, mask=is_first)
        tl.store(rstd_ptr + group_offs, rstd, mask=is_first)
    y = ((h - mean[:, None]) - residual[:, None]) * (rstd * weight * scale)[:, None] + (bias * scale + shift)[:, None]
    if SILU:
        y = apply_silu(y, FAST_SILU)

    out_ptrs = tile_pointers(out_ptr, pid_n, pixels, channels, stride_out_n, stride_out_p, stride_out_c)
    tl.store(out_ptrs, y.to(out_ptr.dtype.element_ty), mask=in_tile)


def launch_group_norm_silu_fwd(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out [N, C, H, W], mean [N, num_groups] and rstd [N, num_groups]."""
    weight, bias, add, scale, shift = (dense(rows) for rows in (weight, bias, add, scale, shift))
    out, mean, rstd = empty_outputs(x, num_groups, weight)
    n, n_channels, height, width = out.shape
    memory_format = output_memory_format(x)
    if out.numel() == 0:
        return out, mean.zero_(), rstd.zero_()
    x = with_even_pixels(x, memory_format)
    skip = None if skip is None else with_even_pixels(skip, memory_format)
    plan = plan_tiles(height * width, n_channels, num_groups, x.element_size(), MAX_VALUES, SHARED_WARPS)
    inputs = input_arguments(x, num_groups, weight, bias, skip, add, scale, shift, plan)
    inputs["OFFSET_TYPE"] = offset_type(x, skip, out)
    residual = None
    if plan.n_chunks > 1:
        residual = torch.empty_like(mean)
        _launch_statistics(mean, residual, rstd, inputs, n, plan, eps)
    outputs = {"out_ptr": out, "mean_ptr": mean, "residual_ptr": residual, "rstd_ptr": rstd}
    outputs |= strides_named("out", out)
    flags = {"eps": eps, "HAS_STATS": plan.n_chunks > 1, "SILU": silu, "FAST_SILU": has_fast_silu(x.dtype)}
    launch_tiles(_group_norm_silu_fwd_kernel, n, plan, outputs | inputs | flags)
    return out, mean, rstd


def _launch_statistics(
    mean: Tensor, residual: Tensor, rstd: Tensor, inputs: dict[str, Any], n: int, plan: TilePlan, eps: float
) -> None:
    num_groups = mean.shape[1]
    moments = torch.empty((3, n, plan.n_chunks, num_groups), dtype=torch.float32, device=mean.device)
    names = ("chunk_mean_ptr", "chunk_residual_ptr", "chunk_deviation_ptr")
    chunks = dict(zip(names, moments.unbind(0), strict=True))
    of_affine = ("weight_ptr", "bias_ptr", "scale_ptr", "shift_ptr", "stride_scale_n", "stride_shift_n")
    features = {name: value for name, value in inputs.items() if name not in of_affine}
    launch_tiles(_group_norm_silu_fwd_stats_kernel, n, plan, chunks | features)
    launch(
        _group_norm_silu_fwd_combine_kernel,
        (KernelConfig({"BLOCK_CHUNKS": 64, "BLOCK_GROUPS": 16}),),
        lambda blocks: (n * triton.cdiv(num_groups, blocks["BLOCK_GROUPS"]),),
        mean_ptr=mean,
        residual_ptr=residual,
        rstd_ptr=rstd,
        **chunks,
        n_chunks=plan.n_chunks,
        n_pixels=inputs["n_pixels"],
        n_groups=num_groups,
        eps=eps,
        CHANNELS_PER_GROUP=plan.config.blocks["CHANNELS_PER_GROUP"],
        BLOCK_PIXELS=plan.config.blocks["BLOCK_PIXELS"],
    )
