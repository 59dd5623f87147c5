"""The native convolution with a weight that is transformed once: for networks whose weights stay.

transformed = transform_weight(weight, height, width)
out = convolve_transformed(x, transformed, bias, residual=residual)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels._derivatives import any_requires_grad, any_transformed
from msf_kernels.checks import (
    require_bool,
    require_int,
    require_same_device,
    require_same_dtype,
    require_shape,
    require_tensor,
)
from msf_kernels.conv3x3._choice import has_fast_instructions, is_native_measured_faster
from msf_kernels.conv3x3._forms import ConvSizes, Form, choose_form
from msf_kernels.conv3x3._formula import summed_weight
from msf_kernels.conv3x3._native import DTYPES, convolve, map_reasons, transform
from msf_kernels.shapes import FeatureMap


@dataclass(frozen=True)
class TransformedWeight:
    """A weight as the native convolution reads it; made by `transform_weight`.

    Args:
        values: [phases, panels, frequencies, C, 32], float32: output channels in panels of 32, zeros beyond the last.
            bfloat16: pairs of input channels, [phases, panels, frequencies, ceil(C / 2), 32, 2].
        in_channels: Input channels, C.
        out_channels: Output channels, K.
        form: Which transform it went through.
        stride: Step of the output.
    """

    values: Tensor
    in_channels: int
    out_channels: int
    form: Form
    stride: int

    @property
    def is_doubling(self) -> bool:
        """Whether maps are doubled by repetition before the convolution."""
        return self.values.shape[0] == 4

    def applied(self, x: FeatureMap, bias: Tensor | None, residual: FeatureMap | None) -> FeatureMap:
        """Return what `convolve_transformed` returns, without its checks: for a caller that has made them."""
        out: Tensor = convolve(x, self.values, bias, residual, self.out_channels, self.form, self.stride)
        return out


def native_convolution_reasons(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return why the native convolution cannot serve such maps on this machine; empty when it can."""
    return _ext.machine_reasons() or map_reasons(device, dtype)


def is_native_convolution_fast(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the native convolution serves such maps with the instructions that it was measured with.

    Args:
        device: Of the maps.
        dtype: Of the maps.
    """
    return not native_convolution_reasons(device, dtype) and has_fast_instructions(dtype)


def is_native_convolution_faster(
    weight: Tensor, height: int, width: int, *, stride: int = 1, upsample: bool = False
) -> bool:
    """Return whether the native convolution with a transformed weight was measured to be faster than the library.

    A static rule of the processor's instruction set and of sizes, never of the batch or of a timing of the moment.

    Args:
        weight: As for `transform_weight`.
        height: Rows of the map.
        width: Columns of the map.
        stride: Step of the output.
        upsample: Whether the map is doubled first.
    """
    if not is_native_convolution_fast(weight.device, weight.dtype):
        return False
    return is_native_measured_faster(
        ConvSizes(weight.shape[-1], weight.shape[-3], weight.shape[-4], height, width, stride, upsample, weight.dtype)
    )


def transform_weight(
    weight: Tensor,
    height: int,
    width: int,
    *,
    stride: int = 1,
    upsample: bool = False,
    dtype: torch.dtype | None = None,
) -> TransformedWeight:
    """Return a weight as `convolve_transformed` reads it; to be done once, after which the original may be dropped.

    It takes 4 times the memory of the original for F(4, 3), 1.8 times for F(2, 3), 11.1 times for F(4, 2) (the summed
    taps of a doubled map are 1.8 times the original themselves), as much where nothing is transformed; output channels
    are rounded up to 32. In bfloat16 nothing but F(2, 3) is used.

    Args:
        weight: [K, C, 3, 3] or [K, C, 1, 1], or with `upsample` also what `pack_weight` made of it, [4, K, C, 2, 2];
            float32 or bfloat16, on the CPU.
        height: Rows of the maps to come. With `width` and the channels it decides the transform; maps of other sizes
            are right as well, and their results are within the same error budget but not the same bits.
        width: Columns of the maps to come.
        stride: Step of the output, >= 1.
        upsample: Whether the map is doubled by repeating every pixel before the convolution; for 3x3 taps.
        dtype: Of the maps to come, float32 or bfloat16; default: that of the weight, which is rounded once, when it is
            transformed.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Axes or sizes that do not fit; `stride` above 1 with `upsample`.
        RuntimeError: The native convolution cannot serve; the text lists the reasons.
    """
    for name, number in (("height", height), ("width", width), ("stride", stride)):
        require_int(name, number, minimum=0 if name != "stride" else 1)
    require_bool("upsample", upsample)
    if upsample and stride != 1:
        raise ValueError(f"stride must be 1 with upsample; got {stride}")
    is_summed = upsample and isinstance(weight, Tensor) and weight.dim() == 5
    axes = "[4, K, C, 2, 2]" if is_summed else "[K, C, 3, 3]" if upsample else "[K, C, 3, 3] or [K, C, 1, 1]"
    require_tensor("weight", weight, "[4, K, C, 2, 2]" if is_summed else "[K, C, 3, 3]", DTYPES)
    n_out, n_in = weight.shape[-4:-2]
    shapes = [(4, n_out, n_in, 2, 2)] if is_summed else [(n_out, n_in, 3, 3)]
    require_shape("weight", weight, axes, *shapes, *([] if upsample else [(n_out, n_in, 1, 1)]))
    if n_out == 0 or n_in == 0:
        raise ValueError(f"weight must be {axes} with K and C >= 1; got shape {list(weight.shape)}")
    dtype = weight.dtype if dtype is None else dtype
    reasons = native_convolution_reasons(weight.device, dtype)
    if reasons:
        raise RuntimeError(f"the native convolution cannot serve: {'; '.join(reasons)}")
    form = choose_form(ConvSizes(weight.shape[-1], n_in, n_out, height, width, stride, upsample, dtype))
    if upsample and not is_summed:
        weight = summed_weight(weight)
    return TransformedWeight(transform(weight.detach(), form, dtype), n_in, n_out, form, stride)


def convolve_transformed(
    x: FeatureMap, weight: TransformedWeight, bias: Tensor | None, *, residual: FeatureMap | None = None
) -> FeatureMap:
    """Convolve with a weight that `transform_weight` made; zeros around the map, bias and residual in the same pass.

    Args:
        x: Feature map; [N, C, H, W]; in the dtype of the weight, on the CPU; any strides, channels-last is read where
            it is. N, H and W may be zero.
        weight: What to convolve with.
        bias: Offset per output channel; [K]; in the dtype of x.
        residual: Added to the result; of its shape and dtype; any strides.

    Returns:
        [N, K, OH, OW], channels-last: H and W by the stride, rounded up, or doubled.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Axes, sizes, devices that do not fit.
        NotImplementedError: A derivative may be taken: there is none.

    Numerics:
        As for the `native` backend of `conv3x3`: bits of an item depend neither on the batch nor on the threads. In
        bfloat16 the transformed weight and, with F(2, 3), the transformed inputs are rounded to bfloat16; sums,
        transforms, bias and residual are float32, with one rounding at the end.
    """
    if not isinstance(weight, TransformedWeight):
        raise TypeError(f"weight must be a TransformedWeight, from transform_weight; got {type(weight).__name__}")
    require_tensor("x", x, "[N, C, H, W]", (weight.values.dtype,))
    n, _, height, width = x.shape
    require_shape("x", x, "[N, C, H, W]", (n, weight.in_channels, height, width))
    require_same_device("x", x, "weight", weight.values)
    factor = 2 if weight.is_doubling else 1
    if bias is not None:
        require_tensor("bias", bias, "[K]", (weight.values.dtype,))
        require_shape("bias", bias, "[K]", (weight.out_channels,))
        require_same_device("bias", bias, "x", x)
    if residual is not None:
        require_tensor("residual", residual, "[N, K, OH, OW]")
        require_same_dtype("residual", residual, "x", x)
        require_same_device("residual", residual, "x", x)
        sides = (factor * -(-side // weight.stride) for side in (height, width))
        require_shape("residual", residual, "[N, K, OH, OW]", (n, weight.out_channels, *sides))
    given = [tensor for tensor in (x, bias, residual) if tensor is not None]
    if any_transformed(given) or (torch.is_grad_enabled() and any_requires_grad(given)):
        raise NotImplementedError(
            'the native convolution has no gradient and no derivative: use conv3x3 with backend="reference", or '
            "torch.no_grad()"
        )
    return weight.applied(x, bias, residual)
