# mypy: ignore-errors
"""The 3x3 convolution in Triton: the implicit matrix product of `msf_kernels._triton.implicit_gemm` with nine taps.

Which of the network's layers are compiled ahead of time stands here; formulas, layout and traffic stand there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.implicit_gemm import launch_implicit_gemm
from msf_kernels._triton.recording import record_launches
from msf_kernels.conv3x3._call import ConvCall

__all__ = ["aot_cases", "launch_conv3x3"]


def launch_conv3x3(*arguments) -> Tensor:
    """Return out [N, K, OH, OW]; takes a `ConvCall`, with weight [phases, K, side, side, C]."""
    call = ConvCall(*arguments)
    return launch_implicit_gemm(
        call.x,
        call.weight,
        call.bias,
        residual=call.residual,
        skip=call.skip,
        stride=call.stride,
        upsample=call.upsample,
        is_plain=True,
    )


# Channels, skip channels, output channels, height = width, stride, upsample, residual: layers of the latent network
# (128 and 256 channels) and of the pixel network (64 and 128), from 32x32 to 4x4.
_LATENT = (
    (8, 0, 128, 32, 1, False, False),
    (128, 0, 128, 32, 1, False, True),
    (128, 0, 128, 32, 2, False, False),
    (128, 0, 256, 16, 1, False, False),
    (256, 0, 256, 16, 1, False, True),
    (256, 0, 256, 8, 1, False, True),
    (256, 0, 256, 4, 1, False, True),
    (256, 256, 256, 4, 1, False, False),
    (256, 128, 256, 16, 1, False, False),
    (256, 0, 256, 16, 1, True, False),
    (128, 0, 8, 32, 1, False, False),
)
_PIXEL = (
    (6, 0, 64, 32, 1, False, False),
    (64, 0, 64, 32, 1, False, True),
    (128, 0, 128, 16, 1, False, True),
    (64, 0, 6, 32, 1, False, False),
)
_AOT_CALLS = {
    torch.bfloat16: _LATENT + _PIXEL,
    torch.float16: (_LATENT[4], _LATENT[9]),
    torch.float32: (_LATENT[4], _LATENT[9]),
}


def aot_cases(arch: int) -> Iterator[AotCase]:
    """Yield the compilations of the networks' convolutions for an architecture."""
    for dtype, calls in _AOT_CALLS.items():
        for call in calls:
            yield from _record(arch, dtype, *call)


def _record(
    arch: int,
    dtype: torch.dtype,
    channels: int,
    skip_channels: int,
    n_out: int,
    side: int,
    stride: int,
    upsample: bool,
    has_residual: bool,
) -> list[AotCase]:
    def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def feature_map(channels: int, side: int) -> Tensor:
        return meta(8, channels, side, side, dtype=dtype).to(memory_format=torch.channels_last)

    total = channels + skip_channels
    out_side = 2 * side if upsample else side // stride
    weight = meta(4, n_out, 2, 2, total, dtype=dtype) if upsample else meta(1, n_out, 3, 3, total, dtype=dtype)
    options = (("residual", has_residual), ("upsample", upsample))
    flags = " ".join(name for name, is_on in options if is_on)
    label = f"conv3x3 {dtype} {channels}+{skip_channels}->{n_out} {side}x{side}/{stride} {flags}".replace("torch.", "")
    with record_launches(label.strip(), arch) as cases:
        launch_conv3x3(
            feature_map(channels, side),
            weight,
            meta(n_out),
            feature_map(n_out, out_side) if has_residual else None,
            feature_map(skip_channels, side) if skip_channels else None,
            stride,
            upsample,
        )
    return cases
