"""The prepared convolution by the operator `conv3x3`, which chooses by what was measured on a GPU."""

from __future__ import annotations

from torch import Tensor

from msf_kernels.conv3x3 import conv3x3, pack_weight
from msf_kernels.prepared._fixed import FixedConvolution


class Conv3x3Form:
    """A 3x3 convolution with weights in the memory format of the maps, or summed for a doubled map."""

    def __init__(self, convolution: FixedConvolution, _x: Tensor) -> None:
        """Lay the weights out."""
        self._stride, self._upsample = convolution.stride, convolution.upsample
        weight = convolution.weight.to(convolution.dtype)
        self._weight = (
            pack_weight(weight, upsample=True)
            if convolution.upsample
            else weight.contiguous(memory_format=convolution.memory_format)
        )

    def __call__(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, _consume_residual: bool) -> Tensor:
        """Return the convolution; [N, C, H, W] -> [N, K, H', W']."""
        return conv3x3(x, self._weight, bias, residual=residual, stride=self._stride, upsample=self._upsample)


def conv3x3_input_reasons(convolution: FixedConvolution, _x: Tensor) -> list[str]:
    """Return why `conv3x3` cannot serve this convolution; empty when it can."""
    reasons = []
    if convolution.weight.shape[2] != 3 or convolution.padding != 1:
        size = convolution.weight.shape[2]
        reasons.append(f"takes 3x3 taps with padding 1; got {size}x{size} with padding {convolution.padding}")
    if convolution.stride > 2:
        reasons.append(f"takes a stride of 1 or 2; got {convolution.stride}")
    return reasons
