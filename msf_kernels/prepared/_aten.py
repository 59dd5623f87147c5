"""The prepared convolution by PyTorch's own operators, with weights in the memory format of the maps."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from msf_kernels.prepared._fixed import FixedConvolution
from msf_kernels.prepared._subpixel import transposed_weight


class AtenForm:
    """A plain convolution; of a doubled map, on a CPU the transposed convolution that equals it.

    On a GPU the map is doubled: one pass over it, and a convolution that the library is tuned for.
    """

    def __init__(self, convolution: FixedConvolution, _x: Tensor) -> None:
        """Lay the weights out."""
        self._convolution = convolution.without_weights()
        self._is_transposed = convolution.upsample and convolution.weight.device.type == "cpu"
        weight = transposed_weight(convolution) if self._is_transposed else convolution.weight.to(convolution.dtype)
        self._weight = weight.contiguous(memory_format=convolution.memory_format)

    def __call__(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, consume_residual: bool) -> Tensor:
        """Return the convolution; [N, C, H, W] -> [N, K, H', W']."""
        convolution = self._convolution
        if not x.numel():
            result = x.new_zeros(convolution.out_shape(x))
        elif self._is_transposed:
            result = functional.conv_transpose2d(x, self._weight, bias, stride=2, padding=1)
        else:
            if convolution.upsample:
                x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            result = functional.conv2d(x, self._weight, bias, convolution.stride, convolution.padding)
        if residual is None:
            return result
        return residual.add_(result) if consume_residual else result.add_(residual)
