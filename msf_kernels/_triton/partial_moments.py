# (kernel bodies are compiled, not executed: their names have no Python types)
"""From moments of parts to the factor and offset of a group norm, and moments of a map that nothing else left.

    mean = sum count_i mean_i / count;   var = (sum M_i + sum count_i (mean_i - mean)^2) / count
    rstd = 1 / sqrt(var + eps);   norm_scale = weight rstd (1 + scale)
    norm_shift = (bias - mean weight rstd) (1 + scale) + shift

The moments of a part i are count, mean and squared deviation M (Chan et al., 1979), laid out as
`msf_kernels.partial_moments` says.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from msf_kernels._triton.launch import KernelConfig, launch
from msf_kernels._triton.offsets import offset_type
from msf_kernels._triton.rows import dense, row_stride
from msf_kernels.partial_moments import CHUNK_PIXELS, empty_moments

_BLOCK_CHANNELS = 64


@triton.jit
def _map_moments_kernel(
    moments_ptr, x_ptr, n_pixels, width, n_channels, n_chunks, n_channel_blocks,
    stride_x_n, stride_x_h, stride_x_w, stride_x_c,
    BUNDLE: tl.constexpr, OFFSET_TYPE: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Leave the moments of one chunk of pixels and block of channels."""
    pid = tl.program_id(0)
    pid_block = pid % n_channel_blocks
    pid_chunk = pid // n_channel_blocks % n_chunks
    pid_n = (pid // n_channel_blocks // n_chunks).to(tl.int64)
    BUNDLES: tl.constexpr = BLOCK_CHANNELS // BUNDLE
    pixels = pid_chunk * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    channels = pid_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_tile = (pixels < n_pixels)[:, None] & (channels < n_channels)[None, :]
    rows = (pixels // width).to(OFFSET_TYPE)
    columns = (pixels % width).to(OFFSET_TYPE)
    offs = (rows * stride_x_h + columns * stride_x_w)[:, None] + channels.to(OFFSET_TYPE)[None, :] * stride_x_c
    x = tl.load(x_ptr + pid_n * stride_x_n + offs, mask=in_tile, other=0.0).to(tl.float32)

    count = tl.minimum(BLOCK_PIXELS, n_pixels - pid_chunk * BLOCK_PIXELS).to(tl.float32) * BUNDLE
    values = tl.reshape(x, [BLOCK_PIXELS, BUNDLES, BUNDLE])
    exists = tl.reshape(in_tile.to(tl.float32), [BLOCK_PIXELS, BUNDLES, BUNDLE])
    mean = tl.sum(tl.sum(values, axis=2), axis=0) / count  # [BUNDLES]
    centred = (values - mean[None, :, None]) * exists
    residual = tl.sum(tl.sum(centred, axis=2), axis=0) / count
    deviation = tl.sum(tl.sum(centred * centred, axis=2), axis=0) - count * residual * residual

    n_bundles = n_channels // BUNDLE
    bundles = pid_block * BUNDLES + tl.arange(0, BUNDLES)
    offs = ((pid_n * n_chunks + pid_chunk) * n_bundles + bundles) * 3
    in_bundles = bundles < n_bundles
    tl.store(moments_ptr + offs, tl.zeros_like(mean) + count, mask=in_bundles)
    tl.store(moments_ptr + offs + 1, mean + residual, mask=in_bundles)
    tl.store(moments_ptr + offs + 2, deviation, mask=in_bundles)


def launch_map_moments(x: Tensor, bundle: int) -> Tensor:
    """Return the moments of a map; [N, C, H, W] -> [N, chunks, C / bundle, 3]. The bundle is a power of two."""
    moments = empty_moments(x, bundle)
    n, n_channels, height, width = x.shape
    n_chunks = moments.shape[1]
    block_channels = max(bundle, min(_BLOCK_CHANNELS, triton.next_power_of_2(n_channels)))
    n_channel_blocks = triton.cdiv(n_channels, block_channels)
    launch(
        _map_moments_kernel,
        (KernelConfig({"BLOCK_PIXELS": CHUNK_PIXELS, "BLOCK_CHANNELS": block_channels}),),
        lambda _blocks: (n * n_chunks * n_channel_blocks,),
        moments_ptr=moments,
        x_ptr=x,
        n_pixels=height * width,
        width=width,
        n_channels=n_channels,
        n_chunks=n_chunks,
        n_channel_blocks=n_channel_blocks,
        stride_x_n=x.stride(0),
        stride_x_h=x.stride(2),
        stride_x_w=x.stride(3),
        stride_x_c=x.stride(1),
        BUNDLE=bundle,
        OFFSET_TYPE=offset_type(x),
    )
    return moments


@triton.jit
def _load_members(
    ptr, skip_ptr, item, groups, in_groups, first, n_chunks, n_chunks_skip, n_bundles, n_bundles_skip,
    BUNDLES_PER_GROUP: tl.constexpr, BLOCK_MEMBERS: tl.constexpr,
):  # fmt: skip
    """Load count, mean and deviation of a block of parts of each group; [BLOCK_GROUPS, BLOCK_MEMBERS] each."""
    members = first + tl.arange(0, BLOCK_MEMBERS)
    chunks = members // BUNDLES_PER_GROUP
    bundles = groups[:, None] * BUNDLES_PER_GROUP + (members % BUNDLES_PER_GROUP)[None, :]
    of_x = in_groups[:, None] & (bundles < n_bundles) & (chunks < n_chunks)[None, :]
    offs = ((item * n_chunks + chunks)[None, :] * n_bundles + bundles) * 3
    count = tl.load(ptr + offs, mask=of_x, other=0.0)
    mean = tl.load(ptr + offs + 1, mask=of_x, other=0.0)
    deviation = tl.load(ptr + offs + 2, mask=of_x, other=0.0)
    if skip_ptr is not None:
        of_skip = in_groups[:, None] & (bundles >= n_bundles) & (chunks < n_chunks_skip)[None, :]
        offs = ((item * n_chunks_skip + chunks)[None, :] * n_bundles_skip + (bundles - n_bundles)) * 3
        count += tl.load(skip_ptr + offs, mask=of_skip, other=0.0)
        mean += tl.load(skip_ptr + offs + 1, mask=of_skip, other=0.0)
        deviation += tl.load(skip_ptr + offs + 2, mask=of_skip, other=0.0)
    return count, mean, deviation


@triton.jit
def _norm_affine_kernel(
    norm_scale_ptr, norm_shift_ptr,
    moments_ptr, skip_moments_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
    n_groups, n_chunks, n_chunks_skip, n_bundles, n_bundles_skip, eps, stride_scale_n, stride_shift_n,
    BUNDLES_PER_GROUP: tl.constexpr, GROUP_CHANNELS: tl.constexpr, BLOCK_GROUP_CHANNELS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr, BLOCK_MEMBERS: tl.constexpr,
):  # fmt: skip
    """Combine the parts of a few groups of one item, in a fixed order, and write the factor and offset per channel."""
    pid = tl.program_id(0)
    n_group_blocks = tl.cdiv(n_groups, BLOCK_GROUPS)
    item = (pid // n_group_blocks).to(tl.int64)
    groups = pid % n_group_blocks * BLOCK_GROUPS + tl.arange(0, BLOCK_GROUPS)
    in_groups = groups < n_groups
    n_members = tl.maximum(n_chunks, n_chunks_skip) * BUNDLES_PER_GROUP

    total = tl.zeros([BLOCK_GROUPS], tl.float32)
    for first in range(0, n_members, BLOCK_MEMBERS):
        count, mean, deviation = _load_members(
            moments_ptr, skip_moments_ptr, item, groups, in_groups, first, n_chunks, n_chunks_skip,
            n_bundles, n_bundles_skip, BUNDLES_PER_GROUP, BLOCK_MEMBERS,
        )  # fmt: skip
        total += tl.sum(count, axis=1)
    safe_total = tl.maximum(total, 1.0)
    # The mean is refined once: its first rounding is as large as the mean is beside the deviation.
    group_mean = tl.zeros([BLOCK_GROUPS], tl.float32)
    for _refinement in range(2):
        shift = tl.zeros([BLOCK_GROUPS], tl.float32)
        for first in range(0, n_members, BLOCK_MEMBERS):
            count, mean, deviation = _load_members(
                moments_ptr, skip_moments_ptr, item, groups, in_groups, first, n_chunks, n_chunks_skip,
                n_bundles, n_bundles_skip, BUNDLES_PER_GROUP, BLOCK_MEMBERS,
            )  # fmt: skip
            shift += tl.sum(count * (mean - group_mean[:, None]), axis=1)
        group_mean += shift / safe_total
    squares = tl.zeros([BLOCK_GROUPS], tl.float32)
    for first in range(0, n_members, BLOCK_MEMBERS):
        count, mean, deviation = _load_members(
            moments_ptr, skip_moments_ptr, item, groups, in_groups, first, n_chunks, n_chunks_skip,
            n_bundles, n_bundles_skip, BUNDLES_PER_GROUP, BLOCK_MEMBERS,
        )  # fmt: skip
        distance = mean - group_mean[:, None]
        squares += tl.sum(deviation + count * distance * distance, axis=1)
    rstd = 1.0 / tl.sqrt_rn(squares / safe_total + eps)

    in_group = tl.arange(0, BLOCK_GROUP_CHANNELS)
    channels = groups[:, None] * GROUP_CHANNELS + in_group[None, :]
    inside = in_groups[:, None] & (in_group < GROUP_CHANNELS)[None, :]
    norm_scale = rstd[:, None] * tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    norm_shift = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32) - group_mean[:, None] * norm_scale
    if scale_ptr is not None:
        factor = 1.0 + tl.load(scale_ptr + item * stride_scale_n + channels, mask=inside, other=0.0).to(tl.float32)
        norm_scale *= factor
        norm_shift *= factor
    if shift_ptr is not None:
        norm_shift += tl.load(shift_ptr + item * stride_shift_n + channels, mask=inside, other=0.0).to(tl.float32)
    offs = item * (n_groups * GROUP_CHANNELS) + channels
    tl.store(norm_scale_ptr + offs, norm_scale, mask=inside)
    tl.store(norm_shift_ptr + offs, norm_shift, mask=inside)


def launch_norm_affine(
    moments: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    skip_moments: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return norm_scale and norm_shift [N, C]; moments and skip_moments are contiguous."""
    weight, bias, scale, shift = (dense(rows) for rows in (weight, bias, scale, shift))
    n, n_chunks, n_bundles, _ = moments.shape
    n_chunks_skip, n_bundles_skip = (0, 0) if skip_moments is None else skip_moments.shape[1:3]
    channels = weight.shape[0]
    norm_scale = torch.empty((n, channels), dtype=torch.float32, device=moments.device)
    norm_shift = torch.empty_like(norm_scale)
    group_channels = channels // num_groups
    launch(
        _norm_affine_kernel,
        (KernelConfig({"BLOCK_GROUPS": 8, "BLOCK_MEMBERS": 32}),),
        lambda blocks: (n * triton.cdiv(num_groups, blocks["BLOCK_GROUPS"]),),
        norm_scale_ptr=norm_scale,
        norm_shift_ptr=norm_shift,
        moments_ptr=moments,
        skip_moments_ptr=skip_moments,
        weight_ptr=weight,
        bias_ptr=bias,
        scale_ptr=scale,
        shift_ptr=shift,
        n_groups=num_groups,
        n_chunks=n_chunks,
        n_chunks_skip=n_chunks_skip,
        n_bundles=n_bundles,
        n_bundles_skip=n_bundles_skip,
        eps=eps,
        stride_scale_n=row_stride(scale),
        stride_shift_n=row_stride(shift),
        BUNDLES_PER_GROUP=(n_bundles + n_bundles_skip) // num_groups,
        GROUP_CHANNELS=group_channels,
        BLOCK_GROUP_CHANNELS=triton.next_power_of_2(group_channels),
    )
    return norm_scale, norm_shift
