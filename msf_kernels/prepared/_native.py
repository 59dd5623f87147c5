"""The prepared convolution by the native extension: float32 and bfloat16 on a CPU, weights transformed once."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.conv3x3 import is_native_convolution_faster, native_convolution_reasons, transform_weight
from msf_kernels.prepared._fixed import FixedConvolution


class NativeForm:
    """A convolution by Winograd's forms, or direct where none fits; the first map's size chooses between them."""

    def __init__(self, convolution: FixedConvolution, x: Tensor) -> None:
        """Transform the weights."""
        height, width = x.shape[2:]
        self._weight = transform_weight(
            convolution.weight.to(torch.float32),
            height,
            width,
            stride=convolution.stride,
            upsample=convolution.upsample,
            dtype=convolution.dtype,
        )

    def __call__(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, _consume_residual: bool) -> Tensor:
        """Return the convolution; [N, C, H, W] -> [N, K, H', W']."""
        return self._weight.applied(x, bias, residual)  # the prepared convolution has checked everything


def native_input_reasons(convolution: FixedConvolution, x: Tensor) -> list[str]:
    """Return why the native convolution cannot serve this one; empty when it can."""
    reasons = native_convolution_reasons(x.device, convolution.dtype)
    size = convolution.weight.shape[2]
    if (size, convolution.padding) not in ((3, 1), (1, 0)):
        reasons = [*reasons, f"takes 3x3 taps with padding 1, or 1x1; got {size}x{size}, padding {convolution.padding}"]
    return reasons


def is_native_first(convolution: FixedConvolution, x: Tensor) -> bool:
    """Return whether `auto` tries it first: where it was measured to be faster, by processor and sizes alone."""
    if x.device.type != "cpu" or native_input_reasons(convolution, x):
        return False
    height, width = x.shape[2:]
    weight = convolution.weight.to(convolution.dtype)
    return is_native_convolution_faster(weight, height, width, stride=convolution.stride, upsample=convolution.upsample)
