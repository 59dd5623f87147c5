# mypy: ignore-errors
# (kernel bodies are compiled, not executed: their names have no Python types)
"""What the forward and the backward kernels of the group norm share: how a tile is cut, loaded and summed by group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.rows import row_stride

# Not measured on a GPU yet. Tiles fill the 32-byte sectors of memory; those of 16 bytes leave the other half of a
# sector to the neighbouring program, which finds it in the L2 cache: better than a second pass over memory. There is
# nothing to tune at run time: another tile would sum in another order and give other last bits.
CHANNEL_BYTES = (32, 16)
VALUES_PER_THREAD = 16
# A tile of as many values leaves room for a second one on the same multiprocessor, which loads while this one stores
# (compiled for sm_90: 101 registers in 8 warps against 102 in 16).
SHARED_VALUES = 8192
MAX_WARPS = 16
CHUNK_VALUES = 8192


@dataclass(frozen=True)
class TilePlan:
    """How many tiles cover an item (blocks of channels x chunks of pixels), and one tile's sizes."""

    n_blocks: int
    n_chunks: int
    config: KernelConfig


def plan_tiles(
    n_pixels: int,
    n_channels: int,
    num_groups: int,
    itemsize: int,
    max_values: int,
    shared_warps: int = MAX_WARPS,
    values_per_thread: int = VALUES_PER_THREAD,
) -> TilePlan:
    """Return tiles of all pixels where such a tile has at most `max_values`, else tiles of a chunk of the pixels.

    Of tiles of all pixels the widest that shares a multiprocessor, in at most `shared_warps`, or the widest.
    """
    channels_per_group = n_channels // num_groups
    widths = [max(channels_per_group, min(channel_bytes // itemsize, n_channels)) for channel_bytes in CHANNEL_BYTES]
    widths = [triton.next_power_of_2(width) for width in widths]
    block_pixels = triton.next_power_of_2(n_pixels)
    limits = (min(SHARED_VALUES, max_values), max_values)
    block_channels = next((width for limit in limits for width in widths if block_pixels * width <= limit), None)
    if block_channels is None:
        block_channels = widths[0]
        block_pixels = max(1, CHUNK_VALUES // block_channels)
    groups = min(block_channels // channels_per_group, num_groups)
    is_shared = block_pixels * block_channels <= SHARED_VALUES
    warps = triton.next_power_of_2(triton.cdiv(block_pixels * block_channels, 32 * values_per_thread))
    blocks = {
        "CHANNELS_PER_GROUP": channels_per_group,
        "GROUPS": groups,
        "BLOCK_PIXELS": block_pixels,
        "BLOCK_CHANNELS": block_channels,
    }
    return TilePlan(
        n_blocks=triton.cdiv(num_groups, groups),
        n_chunks=triton.cdiv(n_pixels, block_pixels),
        config=KernelConfig(blocks, num_warps=min(shared_warps if is_shared else MAX_WARPS, warps)),
    )


def launch_tiles(kernel: Any, n: int, plan: TilePlan, arguments: dict[str, Any]) -> None:
    """Run a kernel on every tile of n items."""
    n_programs = n * plan.n_blocks * plan.n_chunks
    launch(kernel, (plan.config,), lambda _blocks: (n_programs,), **arguments)


def with_even_pixels(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Return x itself if one stride leads from any pixel to the next, else a copy in the given format."""
    height, width = x.shape[2:]
    is_even = height == 1 or width == 1 or x.stride(2) == width * x.stride(3)
    return x if is_even else x.contiguous(memory_format=memory_format)


def strides_named(x_name: str, x: Tensor | None) -> dict[str, int]:
    """Return the launch arguments for the strides of item, pixel and channel of a tensor with even pixels."""
    strides = (0, 0, 0)
    if x is not None:
        strides = (x.stride(0), x.stride(3) if x.shape[3] > 1 else x.stride(2), x.stride(1))
    return {f"stride_{x_name}_{axis}": stride for axis, stride in zip("npc", strides, strict=True)}


def input_arguments(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    plan: TilePlan,
) -> dict[str, Any]:
    """Return the launch arguments that every kernel takes that loads the features and the per-channel vectors."""
    return {
        "x_ptr": x,
        "skip_ptr": skip,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "add_ptr": add,
        "scale_ptr": scale,
        "shift_ptr": shift,
        "n_blocks": plan.n_blocks,
        "n_chunks": plan.n_chunks,
        "n_pixels": x.shape[2] * x.shape[3],
        "n_channels": weight.shape[0],
        "n_channels_x": x.shape[1],
        "n_groups": num_groups,
        **strides_named("x", x),
        **strides_named("skip", skip),
        "stride_add_n": row_stride(add),
        "stride_scale_n": row_stride(scale),
        "stride_shift_n": row_stride(shift),
    }


@triton.jit
def tile_indices(
    pid_block, pid_chunk, n_pixels, n_channels,
    OFFSET_TYPE: tl.constexpr, CHANNELS_PER_GROUP: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Return pixel numbers [BLOCK_PIXELS], channel numbers and which exist [BLOCK_CHANNELS], and both as a mask."""
    local = tl.arange(0, BLOCK_CHANNELS)
    channels = pid_block * (GROUPS * CHANNELS_PER_GROUP) + local
    in_channels = (local < GROUPS * CHANNELS_PER_GROUP) & (channels < n_channels)
    pixels = pid_chunk * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    in_tile = in_channels[:, None] & (pixels < n_pixels)[None, :]
    return pixels.to(OFFSET_TYPE), channels.to(OFFSET_TYPE), in_channels, in_tile


@triton.jit
def sum_in_group(
    per_channel, CHANNELS_PER_GROUP: tl.constexpr, GROUPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):  # fmt: skip
    """Replace each channel's value by the sum over its group; [BLOCK_CHANNELS]; idle channels hold zero."""
    if GROUPS == 1:
        total = tl.zeros_like(per_channel) + tl.sum(per_channel, axis=0)
    else:
        group = tl.arange(0, BLOCK_CHANNELS) // CHANNELS_PER_GROUP
        total = tl.sum(tl.where(group[:, None] == group[None, :], per_channel[None, :], 0.0), axis=1)
    return total


@triton.jit
def load_row(row_ptr, pid_n, stride_n, channels, in_channels):
    """Load an item's per-channel vector in fp32, zero where it is absent; [BLOCK_CHANNELS]."""
    if row_ptr is None:
        row = tl.zeros_like(channels).to(tl.float32)
    else:
        row = tl.load(row_ptr + pid_n * stride_n + channels, mask=in_channels, other=0.0).to(tl.float32)
    return row


@triton.jit
def load_affine(
    weight_ptr, bias_ptr, scale_ptr, shift_ptr, pid_n, channels, in_channels, stride_scale_n, stride_shift_n
):  # fmt: skip
    """Return weight, bias, 1 + scale and shift in fp32; [BLOCK_CHANNELS] each."""
    weight = load_row(weight_ptr, 0, 0, channels, in_channels)
    bias = load_row(bias_ptr, 0, 0, channels, in_channels)
    scale = 1.0 + load_row(scale_ptr, pid_n, stride_scale_n, channels, in_channels)
    shift = load_row(shift_ptr, pid_n, stride_shift_n, channels, in_channels)
    return weight, bias, scale, shift


@triton.jit
def tile_pointers(ptr, pid_n, pixels, channels, stride_n, stride_p, stride_c):
    """Return pointers to a tile of one item; [BLOCK_CHANNELS, BLOCK_PIXELS]. Only the item's offset must be int64."""
    return ptr + pid_n * stride_n + (channels[:, None] * stride_c + pixels[None, :] * stride_p)


@triton.jit
def load_features(
    x_ptr, skip_ptr, add_ptr, pid_n, pixels, channels, in_channels, in_tile, n_channels_x,
    stride_x_n, stride_x_p, stride_x_c, stride_skip_n, stride_skip_p, stride_skip_c, stride_add_n,
):  # fmt: skip
    """Load [x ; skip] + add of one item in fp32; [BLOCK_CHANNELS, BLOCK_PIXELS]."""
    x_ptrs = tile_pointers(x_ptr, pid_n, pixels, channels, stride_x_n, stride_x_p, stride_x_c)
    if skip_ptr is None:
        h = tl.load(x_ptrs, mask=in_tile, other=0.0).to(tl.float32)
    else:
        # Each value is read from one side only: the mask switches the other side's load off.
        in_x = in_tile & (channels < n_channels_x)[:, None]
        in_skip = in_tile & (channels >= n_channels_x)[:, None]
        skip_ptrs = tile_pointers(
            skip_ptr, pid_n, pixels, channels - n_channels_x, stride_skip_n, stride_skip_p, stride_skip_c
        )  # fmt: skip
        h = tl.load(x_ptrs, mask=in_x, other=0.0).to(tl.float32)
        h += tl.load(skip_ptrs, mask=in_skip, other=0.0).to(tl.float32)
    if add_ptr is not None:
        h += load_row(add_ptr, pid_n, stride_add_n, channels, in_channels)[:, None]
    return h
