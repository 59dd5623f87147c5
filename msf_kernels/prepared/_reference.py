"""The definition of the prepared convolution, in plain PyTorch: one rounding, at the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels._triton.output_norm import OutputNorm
from msf_kernels.group_norm_silu import group_norm_silu
from msf_kernels.prepared._fixed import FixedConvolution


class ReferenceForm:
    """The definition: the doubled map, the convolution, bias, residual, shortcut and norm in float32 or better."""

    is_whole = True

    def __init__(self, convolution: FixedConvolution, _x: Tensor) -> None:
        """Round the weights to the dtype of the maps."""
        self._convolution = convolution.without_weights()
        self._weight = convolution.weight.to(convolution.dtype)
        shortcut = convolution.shortcut_weight
        self._shortcut_weight = None if shortcut is None else shortcut.to(convolution.dtype)

    def __call__(
        self,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        _consume_residual: bool,
        shortcut: Sequence[Tensor] = (),
        norm: OutputNorm | None = None,
    ) -> Tensor:
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
            shortcut_weight = self._shortcut_weight if out.numel() else None
            out = followed(out, None, residual, shortcut, shortcut_weight, norm)
        return out.to(convolution.dtype)


def followed(
    out: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    shortcut: Sequence[Tensor],
    shortcut_weight: Tensor | None,
    norm: OutputNorm | None,
) -> Tensor:
    """Return a convolved map [N, K, H, W] with all that follows the products, in its dtype, float32 or better."""
    if bias is not None:
        out = out + bias.to(out.dtype)[:, None, None]
    if residual is not None:
        out = out + residual.to(out.dtype)
    if shortcut_weight is not None:
        maps = torch.cat([each.to(out.dtype) for each in shortcut], dim=1)
        out = out + functional.conv2d(maps, shortcut_weight.to(out.dtype)[:, :, None, None])
    if norm is not None:
        out = group_norm_silu(
            out, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, silu=norm.silu, backend="reference"
        )
    return out
