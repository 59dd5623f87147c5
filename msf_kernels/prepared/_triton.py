# mypy: ignore-errors
"""The prepared convolution in Triton: the implicit matrix product of `msf_kernels._triton.implicit_gemm`, one launch.

Bias, residual, a residual block's shortcut and, of small maps, the norm that follows are part of it. Which layers of
the networks are compiled ahead of time stands here; formulas, layout and traffic stand there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from msf_kernels._triton.aot_case import AotCase
from msf_kernels._triton.implicit_gemm import launch_implicit_gemm
from msf_kernels._triton.output_norm import OutputNorm
from msf_kernels._triton.recording import record_launches

__all__ = ["aot_cases", "launch_prepared_convolution"]


def launch_prepared_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    shortcut: Sequence[Tensor],
    shortcut_weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    stride: int,
    upsample: bool,
) -> Tensor:
    """Return [N, K, OH, OW], channels-last; weight [phases, K, side, side, C], shortcut_weight [K, Cs] dense."""
    norm = None
    if norm_weight is not None:
        norm = OutputNorm(num_groups, norm_weight.contiguous(), norm_bias.contiguous(), eps, silu)
    return launch_implicit_gemm(
        x,
        weight,
        bias,
        residual=residual,
        shortcut=shortcut,
        shortcut_weight=shortcut_weight,
        norm=norm,
        stride=stride,
        upsample=upsample,
    )


# Channels, output channels, height = width, taps per axis, stride, upsample, residual, channels of the shortcut's maps,
# norm of the result: the layers of the latent network (128 and 256 channels) and of the pixel network (64 and 128).
_LATENT = (
    (8, 128, 32, 3, 1, False, False, (), False),
    (128, 128, 32, 3, 1, False, False, (), False),
    (128, 128, 32, 3, 1, False, True, (), False),
    (128, 128, 32, 3, 2, False, False, (), False),
    (128, 256, 16, 3, 1, False, False, (), False),
    (256, 256, 16, 3, 1, False, False, (128,), False),
    (256, 256, 16, 3, 1, False, True, (), False),
    (256, 256, 16, 3, 2, False, False, (), False),
    (256, 256, 8, 3, 1, False, False, (), True),
    (256, 256, 8, 3, 1, False, True, (), False),
    (256, 256, 8, 3, 2, False, False, (), False),
    (256, 256, 4, 3, 1, False, False, (), True),
    (256, 256, 4, 3, 1, False, True, (), False),
    (512, 256, 4, 3, 1, False, False, (), True),
    (256, 256, 4, 3, 1, False, False, (256, 256), False),
    (256, 256, 4, 3, 1, True, False, (), False),
    (512, 256, 8, 3, 1, False, False, (), True),
    (256, 256, 8, 3, 1, False, False, (256, 256), False),
    (256, 256, 8, 3, 1, True, False, (), False),
    (512, 256, 16, 3, 1, False, False, (), False),
    (384, 256, 16, 3, 1, False, False, (), False),
    (256, 256, 16, 3, 1, False, False, (256, 256), False),
    (256, 256, 16, 3, 1, False, False, (256, 128), False),
    (256, 256, 16, 3, 1, True, False, (), False),
    (384, 128, 32, 3, 1, False, False, (), False),
    (256, 128, 32, 3, 1, False, False, (), False),
    (128, 128, 32, 3, 1, False, False, (256, 128), False),
    (128, 128, 32, 3, 1, False, False, (128, 128), False),
    (128, 8, 32, 3, 1, False, False, (), False),
    (128, 4, 32, 3, 1, False, False, (), False),
)
_PIXEL = (
    (6, 64, 32, 3, 1, False, False, (), False),
    (64, 64, 32, 3, 1, False, True, (), False),
    (128, 128, 16, 3, 1, False, True, (), False),
    (128, 128, 8, 3, 1, False, False, (), True),
    (64, 64, 32, 3, 1, False, False, (128, 64), False),
    (64, 6, 32, 3, 1, False, False, (), False),
)
_FEW = (_LATENT[6], _LATENT[8], _LATENT[22], _LATENT[23])
_AOT_CALLS = {torch.bfloat16: _LATENT + _PIXEL, torch.float16: _FEW, torch.float32: _FEW}


def aot_cases(arch: int) -> Iterator[AotCase]:
    """Yield the compilations of the networks' convolutions for an architecture."""
    for dtype, calls in _AOT_CALLS.items():
        for call in calls:
            yield from _record(arch, dtype, *call)


def _record(
    arch: int,
    dtype: torch.dtype,
    channels: int,
    n_out: int,
    side: int,
    taps: int,
    stride: int,
    upsample: bool,
    has_residual: bool,
    shortcut: tuple[int, ...],
    has_norm: bool,
) -> list[AotCase]:
    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def feature_map(channels: int, side: int) -> Tensor:
        return meta(64, channels, side, side).to(memory_format=torch.channels_last)

    out_side = 2 * side if upsample else side // stride
    weight = meta(4, n_out, 2, 2, channels) if upsample else meta(1, n_out, taps, taps, channels)
    options = (("residual", has_residual), ("upsample", upsample), ("norm", has_norm))
    flags = " ".join([name for name, is_on in options if is_on] + [f"shortcut {shortcut}"] * bool(shortcut))
    label = f"{dtype} {channels}->{n_out} {side}x{side}/{stride} {taps}x{taps} {flags}"
    norm = meta(n_out, dtype=torch.float32) if has_norm else None
    with record_launches(f"prepared_convolution {label}".replace("torch.", "").strip(), arch) as cases:
        launch_prepared_convolution(
            feature_map(channels, side),
            weight,
            meta(n_out),  # in the dtype of the maps, as prepared
            feature_map(n_out, out_side) if has_residual else None,
            [feature_map(each, out_side) for each in shortcut],
            meta(n_out, sum(shortcut)) if shortcut else None,
            norm,
            norm,
            32 if has_norm else 0,
            1e-5,
            True,
            stride,
            upsample,
        )
    return cases
