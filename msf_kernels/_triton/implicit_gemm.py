# (kernel bodies are compiled, not executed: their names have no Python types)
"""Convolutions of 1x1, 2x2 and 3x3 taps as one matrix product whose operand is gathered on the way.

    out[n, k, p] = bias[k] + residual[n, k, p] + sum over taps r and channels c of weight[k, r, c] * x[n, c, q(p, r)]
                 + sum over channels c of shortcut_weight[k, c] * [shortcut ; shortcut_skip][n, c, p]

x is zero where the pixel q(p, r) lies outside of the map. q is an index map: `stride * p + r - 1` for 3x3 taps, `p` for
one tap. Nearest-upsampling by two followed by 3x3 taps is four convolutions of 2x2 taps (one per parity of the output's
row and column, which is a *phase* here): phase (a, b) reads rows `i + a - 1` and `i + a` of the small map, and columns
likewise.

A program owns BLOCK_M pixels x BLOCK_N output channels, and sums over taps inside blocks of channels, so that the same
pixels are read for all taps while they are in the caches. Where an item has fewer pixels than a tile, a tile holds
several items. An output value is summed in one order, whatever batch it travels in. Bytes: x and weight are read about
once from memory (taps and blocks of output channels read them again from the caches), residual once, out is written
once.

The shortcut of a residual block is a product of one tap over further channels, summed in the same tile: its result is
never stored. Where a tile holds whole items, the group norm of the result, with SiLU, is applied before it is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.activation import has_fast_silu, silu
from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.offsets import offset_type
from msf_kernels._triton.output_norm import MAX_NORMALISED_PIXELS, OutputNorm
from msf_kernels._triton.recording import compute_capability
from msf_kernels._triton.rows import dense

MAX_BLOCK_M = 256
FEW_PIXELS = 16
HOPPER = 9


@triton.jit
def _add_products(
    acc, x_ptr, weight_ptr,
    items, rows, columns, in_rows, offs_out, in_out, height, width, n_channels, channel_offset, n_channels_all,
    first_row, first_column, stride_x_n, stride_x_h, stride_x_w, stride_x_c,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, OFFSET_TYPE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Add the products with the channels of one input; [BLOCK_M, BLOCK_N]."""
    TAPS: tl.constexpr = SIDE * SIDE
    item_ptrs = x_ptr + items.to(tl.int64) * stride_x_n  # [BLOCK_M]
    for step in range(0, TAPS * tl.cdiv(n_channels, BLOCK_K)):
        tap = step % TAPS
        channels = step // TAPS * BLOCK_K + tl.arange(0, BLOCK_K)
        in_channels = channels < n_channels
        y = rows * STRIDE + (tap // SIDE + first_row)
        x = columns * STRIDE + (tap % SIDE + first_column)
        in_map = in_rows & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        pixel_ptrs = item_ptrs + y.to(OFFSET_TYPE) * stride_x_h + x.to(OFFSET_TYPE) * stride_x_w
        in_tile = in_map[:, None] & in_channels[None, :]
        a = tl.load(pixel_ptrs[:, None] + channels.to(OFFSET_TYPE)[None, :] * stride_x_c, mask=in_tile, other=0.0)
        offs_weight = offs_out[None, :] * (TAPS * n_channels_all) + (tap * n_channels_all + channel_offset)
        in_weight = in_channels[:, None] & in_out[None, :]
        w = tl.load(weight_ptr + (offs_weight + channels[:, None]), mask=in_weight, other=0.0)
        acc = tl.dot(a, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def _group_normalised(
    values, in_rows, offs_out, in_out, norm_weight_ptr, norm_bias_ptr, eps,
    GROUP_CHANNELS: tl.constexpr, SILU: tl.constexpr, FAST_SILU: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Return the group norm of a tile of whole items, with SiLU; [BLOCK_M, BLOCK_N]."""
    ITEMS: tl.constexpr = BLOCK_M // BLOCK_PIXELS
    GROUPS: tl.constexpr = BLOCK_N // GROUP_CHANNELS
    tile = tl.reshape(values, [ITEMS, BLOCK_PIXELS, GROUPS, GROUP_CHANNELS])
    exists = tl.reshape(in_rows.to(tl.float32), [ITEMS, BLOCK_PIXELS])
    count = tl.maximum(tl.sum(exists, axis=1) * GROUP_CHANNELS, 1.0)[:, None]
    weights = exists[:, :, None, None]
    mean = tl.sum(tl.sum(tile * weights, axis=3), axis=1) / count  # [ITEMS, GROUPS]
    centred = (tile - mean[:, None, :, None]) * weights
    # The mean is refined once: its first rounding is as large as the mean is beside the deviation.
    residual = tl.sum(tl.sum(centred, axis=3), axis=1) / count
    variance = tl.sum(tl.sum(centred * centred, axis=3), axis=1) / count - residual * residual
    rstd = 1.0 / tl.sqrt_rn(variance + eps)
    y = tl.reshape((centred - residual[:, None, :, None]) * rstd[:, None, :, None], [BLOCK_M, BLOCK_N])
    weight = tl.load(norm_weight_ptr + offs_out, mask=in_out, other=0.0).to(tl.float32)
    bias = tl.load(norm_bias_ptr + offs_out, mask=in_out, other=0.0).to(tl.float32)
    y = y * weight[None, :] + bias[None, :]
    if SILU:
        y = silu(y, FAST_SILU)
    return y


@triton.jit
def _implicit_gemm_kernel(
    out_ptr,
    x_ptr, skip_ptr, weight_ptr, bias_ptr, residual_ptr,
    shortcut_ptr, shortcut_skip_ptr, shortcut_weight_ptr, norm_weight_ptr, norm_bias_ptr, norm_eps,
    n_items, n_out, n_channels_x, n_channels_skip, n_channels_shortcut, n_channels_shortcut_skip,
    height, width, grid_height, grid_width,
    stride_out_n, stride_out_h, stride_out_w, stride_x_n, stride_x_h, stride_x_w, stride_x_c,
    stride_skip_n, stride_skip_h, stride_skip_w, stride_skip_c,
    stride_residual_n, stride_residual_h, stride_residual_w, stride_residual_c,
    stride_shortcut_n, stride_shortcut_h, stride_shortcut_w, stride_shortcut_c,
    stride_shortcut_skip_n, stride_shortcut_skip_h, stride_shortcut_skip_w, stride_shortcut_skip_c,
    SIDE: tl.constexpr, STRIDE: tl.constexpr, UPSAMPLE: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr, NORM_SILU: tl.constexpr, FAST_SILU: tl.constexpr,
    ITEM_PIXELS: tl.constexpr, OFFSET_TYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Compute one tile; out is channels-last, weight [phases, n_out, SIDE, SIDE, channels] contiguous."""
    BLOCK_PIXELS: tl.constexpr = BLOCK_M if BLOCK_M < ITEM_PIXELS else ITEM_PIXELS
    ITEMS: tl.constexpr = BLOCK_M // BLOCK_PIXELS
    PHASES: tl.constexpr = 4 if UPSAMPLE else 1
    n_pixels = grid_height * grid_width
    n_tiles = tl.cdiv(n_pixels, BLOCK_PIXELS)
    n_out_blocks = tl.cdiv(n_out, BLOCK_N)
    pid = tl.program_id(0)
    first_out = pid % n_out_blocks * BLOCK_N
    phase = pid // n_out_blocks % PHASES
    pid_tile = pid // n_out_blocks // PHASES
    offs_m = tl.arange(0, BLOCK_M)
    items = pid_tile // n_tiles * ITEMS + offs_m // BLOCK_PIXELS
    pixels = pid_tile % n_tiles * BLOCK_PIXELS + offs_m % BLOCK_PIXELS
    in_rows = (items < n_items) & (pixels < n_pixels)
    rows = pixels // grid_width
    columns = pixels % grid_width
    offs_out = first_out + tl.arange(0, BLOCK_N)
    in_out = offs_out < n_out
    if UPSAMPLE:
        first_row = phase // 2 - 1
        first_column = phase % 2 - 1
        out_rows = 2 * rows + phase // 2
        out_columns = 2 * columns + phase % 2
    else:
        first_row = -(SIDE // 2)
        first_column = -(SIDE // 2)
        out_rows = rows
        out_columns = columns

    n_channels = n_channels_x + n_channels_skip
    phase_weight_ptr = weight_ptr + phase * (SIDE * SIDE) * n_channels * n_out
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    acc = _add_products(
        acc, x_ptr, phase_weight_ptr,
        items, rows, columns, in_rows, offs_out, in_out, height, width, n_channels_x, 0, n_channels,
        first_row, first_column, stride_x_n, stride_x_h, stride_x_w, stride_x_c,
        SIDE, STRIDE, OFFSET_TYPE, PRECISION, BLOCK_K,
    )  # fmt: skip
    if skip_ptr is not None:
        acc = _add_products(
            acc, skip_ptr, phase_weight_ptr,
            items, rows, columns, in_rows, offs_out, in_out, height, width, n_channels_skip, n_channels_x, n_channels,
            first_row, first_column, stride_skip_n, stride_skip_h, stride_skip_w, stride_skip_c,
            SIDE, STRIDE, OFFSET_TYPE, PRECISION, BLOCK_K,
        )  # fmt: skip

    if shortcut_ptr is not None:
        out_height = grid_height * 2 if UPSAMPLE else grid_height
        out_width = grid_width * 2 if UPSAMPLE else grid_width
        n_channels_all = n_channels_shortcut + n_channels_shortcut_skip
        acc = _add_products(
            acc, shortcut_ptr, shortcut_weight_ptr,
            items, out_rows, out_columns, in_rows, offs_out, in_out, out_height, out_width,
            n_channels_shortcut, 0, n_channels_all, 0, 0,
            stride_shortcut_n, stride_shortcut_h, stride_shortcut_w, stride_shortcut_c,
            1, 1, OFFSET_TYPE, PRECISION, BLOCK_K,
        )  # fmt: skip
        if shortcut_skip_ptr is not None:
            acc = _add_products(
                acc, shortcut_skip_ptr, shortcut_weight_ptr,
                items, out_rows, out_columns, in_rows, offs_out, in_out, out_height, out_width,
                n_channels_shortcut_skip, n_channels_shortcut, n_channels_all, 0, 0,
                stride_shortcut_skip_n, stride_shortcut_skip_h, stride_shortcut_skip_w, stride_shortcut_skip_c,
                1, 1, OFFSET_TYPE, PRECISION, BLOCK_K,
            )  # fmt: skip

    in_tile = in_rows[:, None] & in_out[None, :]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_out, mask=in_out, other=0.0).to(tl.float32)[None, :]
    out_rows = out_rows.to(OFFSET_TYPE)
    out_columns = out_columns.to(OFFSET_TYPE)
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + items.to(tl.int64) * stride_residual_n
        residual_ptrs += out_rows * stride_residual_h + out_columns * stride_residual_w
        offs_channel = offs_out.to(OFFSET_TYPE)[None, :] * stride_residual_c
        acc += tl.load(residual_ptrs[:, None] + offs_channel, mask=in_tile, other=0.0).to(tl.float32)
    if norm_weight_ptr is not None:
        acc = _group_normalised(
            acc, in_rows, offs_out, in_out, norm_weight_ptr, norm_bias_ptr, norm_eps,
            GROUP_CHANNELS, NORM_SILU, FAST_SILU, BLOCK_PIXELS, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    out = acc.to(out_ptr.dtype.element_ty)
    out_ptrs = out_ptr + items.to(tl.int64) * stride_out_n + (out_rows * stride_out_h + out_columns * stride_out_w)
    tl.store(out_ptrs[:, None] + offs_out[None, :], out, mask=in_tile)


def launch_implicit_gemm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    skip: Tensor | None = None,
    stride: int = 1,
    upsample: bool = False,
    shortcut: Sequence[Tensor] = (),
    shortcut_weight: Tensor | None = None,
    norm: OutputNorm | None = None,
    is_plain: bool = False,
) -> Tensor:
    """Return out [N, K, OH, OW], channels-last; weight is [phases, K, side, side, C], contiguous.

    The shortcut is one map or two, [N, Cs, OH, OW], with a contiguous weight [K, all of their channels]. A norm must be
    one of those of `can_normalise`. `is_plain`: only in tiles that leave registers for a skip and a bias in float32.
    """
    bias = dense(bias)
    n, channels_x, height, width = x.shape
    n_out, side = weight.shape[1:3]
    grid_height, grid_width = -(-height // stride), -(-width // stride)
    factor = 2 if upsample else 1
    out = torch.empty(
        (n, n_out, factor * grid_height, factor * grid_width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    if out.numel() == 0:
        return out
    n_pixels = grid_height * grid_width
    item_pixels = min(MAX_BLOCK_M, triton.next_power_of_2(n_pixels))
    channels_skip = 0 if skip is None else skip.shape[1]
    first, second = (*shortcut, None, None)[:2]

    def grid(blocks: dict[str, int]) -> tuple[int, ...]:
        block_pixels = min(blocks["BLOCK_M"], item_pixels)
        n_tiles = triton.cdiv(n, blocks["BLOCK_M"] // block_pixels) * triton.cdiv(n_pixels, block_pixels)
        return (n_tiles * weight.shape[0] * triton.cdiv(n_out, blocks["BLOCK_N"]),)

    launch(
        _implicit_gemm_kernel,
        _configs(
            x.dtype,
            n_out,
            min(channels_x, channels_skip or channels_x),
            n_pixels,
            compute_capability(x.device),
            is_plain,
        ),
        grid,
        configuration_key=(
            (x.dtype, n_pixels, channels_x, channels_skip, n_out, side, stride, is_plain),
            (tuple(each.shape[1] for each in shortcut), norm is None),
        ),
        is_matmul=x.dtype != torch.float32,
        out_ptr=out,
        x_ptr=x,
        skip_ptr=skip,
        weight_ptr=weight,
        bias_ptr=bias,
        residual_ptr=residual,
        shortcut_ptr=first,
        shortcut_skip_ptr=second,
        shortcut_weight_ptr=shortcut_weight,
        norm_weight_ptr=None if norm is None else norm.weight,
        norm_bias_ptr=None if norm is None else norm.bias,
        norm_eps=0.0 if norm is None else norm.eps,
        n_items=n,
        n_out=n_out,
        n_channels_x=channels_x,
        n_channels_skip=channels_skip,
        n_channels_shortcut=0 if first is None else first.shape[1],
        n_channels_shortcut_skip=0 if second is None else second.shape[1],
        height=height,
        width=width,
        grid_height=grid_height,
        grid_width=grid_width,
        stride_out_n=out.stride(0),
        stride_out_h=out.stride(2),
        stride_out_w=out.stride(3),
        **_strides("x", x),
        **_strides("skip", skip),
        **_strides("residual", residual),
        **_strides("shortcut", first),
        **_strides("shortcut_skip", second),
        SIDE=side,
        STRIDE=stride,
        UPSAMPLE=upsample,
        GROUP_CHANNELS=0 if norm is None else n_out // norm.num_groups,
        NORM_SILU=norm is not None and norm.silu,
        FAST_SILU=has_fast_silu(x.dtype),
        ITEM_PIXELS=item_pixels,
        OFFSET_TYPE=offset_type(x, skip, residual, first, second, out),
        # TF32 would round fp32 inputs to 10 bits.
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
    )
    return out


def _strides(name: str, x: Tensor | None) -> dict[str, int]:
    strides = (0, 0, 0, 0) if x is None else (x.stride(0), x.stride(2), x.stride(3), x.stride(1))
    return {f"stride_{name}_{axis}": stride for axis, stride in zip("nhwc", strides, strict=True)}


# Not measured on a GPU yet: the first is what runs unless all are tried. All of a list have one block of
# channels, so that a value is summed in one order; the last bits of a norm may follow the layout of a tile.
def _configs(
    dtype: torch.dtype,
    n_out: int,
    n_channels: int,
    n_pixels: int,
    capability: int | None,
    is_plain: bool = False,
) -> tuple[KernelConfig, ...]:
    def config(m: int, n: int, warps: int, stages: int) -> KernelConfig:
        # Triton's products need 16 in every direction.
        return KernelConfig({"BLOCK_M": m, "BLOCK_N": min(n, block_n), "BLOCK_K": block_k}, warps, stages)

    block_k = max(16, min(64, triton.next_power_of_2(n_channels)))
    block_n = max(16, triton.next_power_of_2(n_out))
    if dtype == torch.float32:
        block_k = min(32, block_k)
        return (config(64, 64, 4, 1),)
    if block_n < 128:
        return (config(128, block_n, 4, 3), config(64, block_n, 4, 3))
    # Compiled for sm_100 with a bias in float32 the deeper one spills 8 bytes.
    deeper = () if is_plain else (config(128, 128, 8, 4),)
    large = (config(128, 128, 8, 3), *deeper, config(64, 128, 4, 3))
    if n_pixels <= MAX_NORMALISED_PIXELS:
        # Small tiles where large ones would leave most of the multiprocessors without one.
        small = (config(64, 64, 4, 4), config(64, 128, 4, 4))
        return (*(small if n_pixels <= FEW_PIXELS else reversed(small)), *large[:2])
    if is_plain or n_pixels < MAX_BLOCK_M:
        return large
    wide = (*large, config(128, 64, 8, 3))
    if capability is None or capability // 10 != HOPPER:
        return wide  # the largest tile spills: 64 bytes on sm_80 with a shortcut, 88 on sm_100 with a residual
    # The tiles are read from the cache, which is the limit in the model (docs/gpu-model.md): the largest first.
    return (config(256, 128, 8, 3), *wide)
