"""Convolutions of a finished autoencoder: weights laid out once, upsampling without the large map.

A 3x3 convolution of a doubled map is computed on the small map: every value stands four times in the large one, so the
nine taps of an output pixel meet four different inputs, and their weights are summed beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from msf_kernels import prepared_convolution
from msf_kernels.prepared import PreparedConvolution
from msf_kernels.shapes import FeatureMap
from msf_kernels.solvers.field_calls import version_of


@dataclass(frozen=True)
class _Prepared:
    """A convolution laid out for one state of the weights and one size of maps, on which its bits depend."""

    valid_for: tuple[object, ...]
    convolution: PreparedConvolution


class FoldedConvolution(nn.Module):
    """`conv(x)`, or `conv(nearest_upsample(x, 2))`, in the fastest form there is while no gradient is recorded.

    The parameters are those of the convolution, under their names, so that the state dict does not change. The layout
    is made at the first map, and anew for maps of another size or changed weights: so bits depend on the map alone, not
    on those before it. It takes up to four times the memory of the weights, eleven times with `upsample`, beside them.

    Args:
        conv: Square taps, no dilation, zero padding below half of them, one group; with `upsample` 3x3 taps with stride
            and padding 1.
        upsample: Whether every pixel is repeated to 2x2 first.

    Raises:
        ValueError: Another convolution.
    """

    def __init__(self, conv: nn.Conv2d, *, upsample: bool = False) -> None:
        """Take over the parameters."""
        super().__init__()
        if not is_foldable(conv, upsample=upsample):
            wanted = "3x3 with stride 1, zero padding 1" if upsample else "square without dilation, with zero padding"
            raise ValueError(f"conv must be {wanted} and one group; got {conv}")
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.padding, self.upsample = conv.stride[0], int(conv.padding[0]), upsample
        self._prepared: _Prepared | None = None

    def forward(self, x: FeatureMap, residual: FeatureMap | None = None) -> FeatureMap:
        """Return the convolution plus `residual`; [N, out, H', W'] from [N, in, H, W]."""
        if torch.is_grad_enabled():
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") if self.upsample else x
            result = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
            return result if residual is None else result + residual
        return self._convolution(x)(x, residual=residual)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the layout out of copies and files; it is made again at the next map."""
        return {**self.__dict__, "_prepared": None}

    def _convolution(self, x: Tensor) -> PreparedConvolution:
        weights = [tensor for tensor in (self.weight, self.bias) if tensor is not None]
        states = ((tensor.data_ptr(), tensor.device, tensor.dtype, version_of(tensor)) for tensor in weights)
        valid_for = (*states, x.shape[2:])
        prepared = self._prepared
        if prepared is None or prepared.valid_for != valid_for:
            convolution = prepared_convolution(
                self.weight, self.bias, stride=self.stride, padding=self.padding, upsample=self.upsample
            )
            prepared = self._prepared = _Prepared(valid_for, convolution)
        return prepared.convolution


class FoldedUpsample(nn.Module):
    """Nearest upsampling and the convolution after it; the latter stays a submodule of the name that it had.

    Args:
        conv: 3x3, stride 1, zero padding 1, one group.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Fold the convolution."""
        super().__init__()
        self.conv = FoldedConvolution(conv, upsample=True)

    def forward(self, x: FeatureMap) -> FeatureMap:
        """Return [N, out, 2H, 2W] from [N, in, H, W]."""
        return self.conv(x)  # type: ignore[no-any-return]


def fold_convolutions(module: nn.Module) -> int:
    """Replace the convolutions of a diffusers encoder or decoder, and its upsampling; return how many.

    Those of another kind (dilated, grouped, transposed; upsampling with a norm or without convolution) are left alone.

    Args:
        module: Searched with all its submodules; changed in place.
    """
    from diffusers.models.upsampling import Upsample2D

    n_replaced = 0
    for name, child in list(module.named_children()):
        if isinstance(child, Upsample2D):
            conv = _conv_after_nearest(child)
            if is_foldable(conv, upsample=True):
                setattr(module, name, FoldedUpsample(conv))
                n_replaced += 1
        elif is_foldable(child):
            setattr(module, name, FoldedConvolution(child))  # type: ignore[arg-type]
            n_replaced += 1
        else:
            n_replaced += fold_convolutions(child)
    return n_replaced


def is_foldable(conv: object, *, upsample: bool = False) -> bool:
    """Return whether a layer is a convolution that `FoldedConvolution` takes."""
    if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.padding_mode != "zeros" or conv.dilation != (1, 1):
        return False
    taps, stride, padding = conv.kernel_size, conv.stride, conv.padding
    if upsample:
        return (taps, stride, padding) == ((3, 3), (1, 1), (1, 1))
    is_square = taps[0] == taps[1] and stride[0] == stride[1] and padding[0] == padding[1]
    return is_square and not isinstance(padding, str) and padding[0] < (taps[0] + 1) // 2


def _conv_after_nearest(upsample: Any) -> Any:
    # Outside of autoencoders diffusers gives the convolution another name; such a layer is left alone.
    return getattr(upsample, "conv", None) if upsample.interpolate and upsample.norm is None else None
