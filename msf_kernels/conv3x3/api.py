"""The public 3x3 convolution: checks of the inputs, and which implementation serves a call."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels._derivatives import Derivatives
from msf_kernels._ext import native_backend
from msf_kernels._triton.machine import triton_backend
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import (
    require_bool,
    require_int,
    require_same_device,
    require_same_dtype,
    require_shape,
    require_tensor,
)
from msf_kernels.conv3x3._aten import conv3x3_aten
from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._choice import auto_order
from msf_kernels.conv3x3._formula import summed_weight
from msf_kernels.conv3x3._measured import TABLE
from msf_kernels.conv3x3._native import conv3x3_native, native_input_reasons
from msf_kernels.conv3x3._ops import conv3x3_input_reasons, conv3x3_triton
from msf_kernels.conv3x3._reference import conv3x3_reference
from msf_kernels.memory_format import in_memory_format
from msf_kernels.shapes import FeatureMap

_conv = Operator(
    "conv3x3",
    [
        triton_backend(conv3x3_triton, conv3x3_input_reasons),
        native_backend(conv3x3_native, native_input_reasons, device_type="cpu", derivatives=Derivatives.REVERSE),
        Backend("aten", conv3x3_aten, derivatives=Derivatives.ALL),
        Backend("reference", conv3x3_reference, derivatives=Derivatives.ALL),
    ],
    auto_order,
    TABLE,
    record=ConvCall,
)


def conv3x3(
    x: FeatureMap,
    weight: Tensor,
    bias: Tensor | None,
    *,
    residual: FeatureMap | None = None,
    stride: int = 1,
    upsample: bool = False,
    skip: FeatureMap | None = None,
    backend: str = "auto",
) -> FeatureMap:
    """Convolve with 3x3 taps and one ring of zeros, with the steps around it in the same pass where the device allows.

        h = concatenate([x, skip], channels)
        out = conv2d(h, weight, bias, stride, padding=1) + residual;   with upsample: of the map doubled by repetition

    Args:
        x: Feature map; [N, C, H, W] (without `skip`); float16, bfloat16, float32 or float64; any strides, channels-last
            is fastest. N, H and W may be zero.
        weight: [K, C, 3, 3] in the dtype of `x`, C being all channels; or, with `upsample`, what `pack_weight` made of
            it, [4, K, C, 2, 2]. `pack_weight` spares a copy at every call.
        bias: Offset per output channel; [K]; any floating dtype. A time embedding that all items share is folded in
            here. None: no offset.
        residual: Added to the result; of its shape, in the dtype of `x`.
        stride: 1, or 2 for half the height and width, rounded up.
        upsample: Whether the map is doubled by repeating every pixel, before the convolution.
            Computed on the small map, as four convolutions of 2x2 summed taps: 4/9 of the arithmetic.
        skip: Feature map whose channels follow those of `x`; [N, C_skip, H, W]; dtype of `x`. `triton` reads it where
            it is.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        [N, K, OH, OW] in the dtype and on the device of `x`, channels-last.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Axes, sizes, devices that do not fit; `stride` 2 with `upsample`.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        `triton` and `reference`: products accumulated in float32 (float64 when `x` is float64), one rounding at the
        end. `aten` rounds before the residual is
        added. `triton` multiplies float32 as float32; the other backends follow PyTorch's TF32 setting on a GPU. Summed
        taps are rounded to the dtype of the weight. No atomics: every run of `triton` and `native` gives the same bits.
        An item's result does not depend on the other items of the batch; the last bits of `aten` and `reference` can
        depend on how many there are, those of `triton` and `native` cannot. `triton` has no gradient, `native` has
        those of reverse mode (the first one of the input by Winograd's forms too), the others those of any mode.
        `native` (float32 on a CPU) is Winograd's F(4x4, 3x3) from 64 channels on, F(2x2, 3x3) below and on the smallest
        maps, F(4x4, 2x2) per parity of doubled maps from 32 channels on, else the plain sum: sizes and channels decide.
        Its weight is transformed at every call; `transform_weight` spares that. Sums are chains of at most 64 products,
        so that errors stay within twice those of PyTorch's plain sum, in root mean square: F(4x4, 3x3) is at 1.9 times
        for 64 channels and level from 256 on, F(2x2, 3x3) at 0.3 to 0.8. An infinity or NaN reaches all outputs of the
        tiles that read it (4x4 pixels), not the one ring around it only.

    Source:
        Upsampling as convolutions per output parity: Shi et al., arXiv 1609.05158 (sub-pixel convolution), here with
        the fixed taps of repetition. Short convolutions: Winograd, Arithmetic Complexity of Computations, 1980; in
        networks: Lavin and Gray, arXiv 1509.09308.
    """
    require_tensor("x", x, "[N, C, H, W]")
    require_int("stride", stride, minimum=1, below=3)
    require_bool("upsample", upsample)
    if upsample and stride != 1:
        raise ValueError(f"stride must be 1 with upsample; got {stride}")
    n, channels, height, width = x.shape
    if skip is not None:
        require_tensor("skip", skip, "[N, C_skip, H, W]")
        require_same_dtype("skip", skip, "x", x)
        require_same_device("skip", skip, "x", x)
        require_shape("skip", skip, "[N, C_skip, H, W] of x", (n, skip.shape[1], height, width))
        channels += skip.shape[1]
    n_out = _check_weight(weight, x, channels, upsample)
    if bias is not None:
        require_tensor("bias", bias, "[K]")
        require_shape("bias", bias, "[K]", (n_out,))
        require_same_device("bias", bias, "x", x)
    factor = 2 if upsample else 1
    if residual is not None:
        require_tensor("residual", residual, "[N, K, OH, OW]")
        require_same_dtype("residual", residual, "x", x)
        require_same_device("residual", residual, "x", x)
        shape = (n, n_out, factor * -(-height // stride), factor * -(-width // stride))
        require_shape("residual", residual, "[N, K, OH, OW]", shape)
    result: Tensor = _conv(
        backend,
        x,
        weight,
        bias,
        residual=residual,
        stride=stride,
        upsample=upsample,
        skip=skip,
    )
    return result


def pack_weight(weight: Tensor, *, upsample: bool = False) -> Tensor:
    """Return a convolution's weight in the form that `conv3x3` reads without a copy; to be done once.

    Args:
        weight: [K, C, 3, 3]; any floating dtype.
        upsample: Whether it is for `conv3x3(..., upsample=True)`: taps that meet the same pixel of the small map are
            summed, in float32 (float64 for float64), and rounded once.

    Returns:
        [K, C, 3, 3] in channels-last memory, or [4, K, C, 2, 2] with channels innermost in memory: one weight per
        parity of the output's row and column.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: Another shape.
    """
    require_tensor("weight", weight, "[K, C, 3, 3]")
    require_shape("weight", weight, "[K, C, 3, 3]", (*weight.shape[:2], 3, 3))
    require_bool("upsample", upsample)
    return summed_weight(weight) if upsample else in_memory_format(weight, torch.channels_last)


def _check_weight(weight: Tensor, x: Tensor, channels: int, upsample: bool) -> int:
    """Return the number of output channels."""
    is_summed = upsample and isinstance(weight, Tensor) and weight.dim() == 5
    axes = "[4, K, C, 2, 2]" if is_summed else "[K, C, 3, 3]"
    require_tensor("weight", weight, axes)
    n_out = weight.shape[-4]
    require_shape("weight", weight, axes, (4, n_out, channels, 2, 2) if is_summed else (n_out, channels, 3, 3))
    if n_out == 0 or channels == 0:
        raise ValueError(f"weight must be {axes} with K and C >= 1; got shape {list(weight.shape)}")
    require_same_dtype("weight", weight, "x", x)
    require_same_device("weight", weight, "x", x)
    return n_out
