# mypy: ignore-errors
"""Group norm, scale and shift, SiLU in Triton.

Forward, for an item n and a group g of channels c over P pixels, M values in all:

    h = [x ; skip] + add;   mean and var of h over the group;   xhat = (h - mean) * rstd,  rstd = 1 / sqrt(var + eps)
    y = (xhat * weight + bias) * (1 + scale) + shift;   out = y * sigmoid(y)

Backward, with dy = grad_out * d out / d y, factor = weight * (1 + scale), and per item and channel the sums over pixels
A = sum dy, B = sum dy * xhat, X = sum xhat; a = sum_g(factor * A) / M, b = sum_g(factor * B) / M:

    grad_h = rstd * (dy * factor - a - xhat * b);     grad_add = rstd * (factor * A - P * a - X * b)
    grad_weight = sum_n (1 + scale) * B;  grad_bias = sum_n (1 + scale) * A
    grad_scale = weight * B + bias * A;   grad_shift = A

A program owns a tile [pixels, channels] of whole groups, as many as fill the 32-byte sectors of a pixel. Where all
pixels of such a tile fit in registers, one kernel reads x once and writes out once (backward: reads x and grad_out,
writes grad_x): 2 and 3 values of memory traffic per value, the least possible. Otherwise one kernel leaves mean and
squared deviation per chunk of pixels, a second combines them with Chan's formula in a fixed order, a third normalises:
3 and 5 values. Channels-last tensors are read along channels, contiguous ones along pixels: the strides decide. `skip`
is read in place. Nothing is accumulated by atomics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.recording import record_launches
from msf_kernels.group_norm_silu._triton_bwd import launch_group_norm_silu_bwd
from msf_kernels.group_norm_silu._triton_fwd import launch_group_norm_silu_fwd

__all__ = ["aot_cases", "launch_group_norm_silu_bwd", "launch_group_norm_silu_fwd"]

_NHWC, _NCHW = torch.channels_last, torch.contiguous_format
_EMBEDDING_ADDED, _EMBEDDING_SCALES = ("add",), ("scale", "shift")
# Channels, skip channels, height = width, memory format, rows: the networks' levels with groups of 2 to 16 channels,
# the autoencoder's maps, which no tile holds, and what else a norm is called with.
_AOT_CALLS = (
    (64, 0, 32, _NHWC, _EMBEDDING_ADDED),
    (128, 0, 32, _NHWC, _EMBEDDING_ADDED),
    (128, 0, 32, _NHWC, _EMBEDDING_SCALES),
    (128, 0, 32, _NHWC, ()),
    (128, 0, 32, _NCHW, _EMBEDDING_ADDED),
    (256, 128, 16, _NHWC, ()),
    (256, 256, 8, _NHWC, ()),
    (320, 0, 28, _NHWC, _EMBEDDING_ADDED),
    (128, 0, 256, _NHWC, ()),
    (128, 0, 256, _NCHW, ()),
)
# Channels, skip channels, height = width, SiLU: what an evaluation of the latent network calls, forward only.
_LATENT = (
    (128, 0, 32, True),
    (128, 0, 16, True),
    (256, 0, 16, True),
    (256, 0, 16, False),
    (256, 0, 8, True),
    (256, 0, 4, True),
    (256, 0, 4, False),
    (256, 256, 4, True),
    (256, 256, 8, True),
    (256, 256, 16, True),
    (256, 128, 16, True),
    (256, 0, 32, True),
    (256, 128, 32, True),
    (128, 128, 32, True),
)


def aot_cases(arch: int) -> Iterator[AotCase]:
    """Yield the compilations of the networks' norms, forward and backward; the same for every architecture."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for call in _AOT_CALLS:
            yield from _record(dtype, *call)
    for channels, skip_channels, side, silu in _LATENT:
        yield from _record(torch.bfloat16, channels, skip_channels, side, _NHWC, (), silu, is_forward_only=True)


def _record(
    dtype: torch.dtype,
    channels: int,
    skip_channels: int,
    side: int,
    memory_format: torch.memory_format,
    rows: tuple[str, ...],
    silu: bool = True,
    *,
    is_forward_only: bool = False,
) -> list[AotCase]:
    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    n, num_groups, total = 8, 32, channels + skip_channels
    x, out = (meta(n, c, side, side, dtype=dtype).to(memory_format=memory_format) for c in (channels, total))
    skip = meta(n, skip_channels, side, side, dtype=dtype).to(memory_format=memory_format) if skip_channels else None
    weight, bias = meta(total), meta(total)
    add, scale, shift = (meta(n, total) if name in rows else None for name in ("add", "scale", "shift"))
    stats = meta(n, num_groups)
    layout = "NHWC" if memory_format == _NHWC else "NCHW"
    flags = " ".join((*rows, *(["no silu"] * (not silu))))
    label = f"group_norm_silu {dtype} {channels}+{skip_channels}x{side}x{side} {layout} {flags}".replace(
        "torch.", ""
    ).strip()
    with record_launches(label) as cases:
        launch_group_norm_silu_fwd(x, num_groups, weight, bias, skip, add, scale, shift, 1e-5, silu)
        if is_forward_only:
            return cases
        launch_group_norm_silu_bwd(out, stats, stats, x, num_groups, weight, bias, skip, add, scale, shift, True)
    return cases
