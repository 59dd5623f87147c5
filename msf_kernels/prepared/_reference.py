"""The definition of the prepared convolution, in plain PyTorch: one rounding, at the end."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels.prepared._fixed import FixedConvolution


class ReferenceForm:
    """The definition: the doubled map, the convolution, the bias and the residual in float32 or better."""

    def __init__(self, convolution: FixedConvolution, _x: Tensor) -> None:
        """Round the weights to the dtype of the maps."""
        self._convolution = convolution.without_weights()
        self._weight = convolution.weight.to(convolution.dtype)

    def __call__(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, _consume_residual: bool) -> Tensor:
        """Return the convolution; [N, C, H, W] -> [N, K, H', W']."""
        convolution = self._convolution
        dtype = torch.promote_types(convolution.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            h = x.to(dtype)
            if convolution.upsample:
                h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            if not x.numel():  # which convolutions of some libraries refuse
                out = h.new_zeros(convolution.out_shape(x))
            else:
                wide = None if bias is None else bias.to(dtype)
                out = functional.conv2d(h, self._weight.to(dtype), wide, convolution.stride, convolution.padding)
            if residual is not None:
                out = out + residual.to(dtype)
        return out.to(convolution.dtype)
