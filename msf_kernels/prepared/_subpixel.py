"""The transposed convolution that equals nearest-neighbour doubling followed by a 3x3 convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.conv3x3 import pack_weight
from msf_kernels.prepared._fixed import FixedConvolution


def transposed_weight(convolution: FixedConvolution) -> Tensor:
    """Return `subpixel_weight` in the dtype of the maps, rounded once."""
    wide = torch.promote_types(convolution.weight.dtype, convolution.dtype)
    return subpixel_weight(convolution.weight.to(wide)).to(convolution.dtype)


def subpixel_weight(weight: Tensor) -> Tensor:
    """Return the weight of the transposed convolution.

    Output pixel 2i + a of the doubled map sees the input pixels i - 1, i, i + 1 through three taps, two of which fall
    on the same input pixel: summed, they are two taps per parity a and axis, which is what a transposed convolution of
    stride 2 with four taps and padding 1 applies.

    Args:
        weight: Weight of the 3x3 convolution with padding 1; [K, C, 3, 3].

    Returns:
        Weight for `conv_transpose2d(x, ..., stride=2, padding=1)`; [C, K, 4, 4], dtype of `weight`; summed as
        `msf_kernels.pack_weight` does.

    Source:
        Sub-pixel convolution: Shi et al., arXiv 1609.05158; nearest-neighbour form: Aitken et al., arXiv 1707.02937.
    """
    k, c = weight.shape[:2]
    phases = pack_weight(weight, upsample=True).view(2, 2, k, c, 2, 2)  # output parities, K, C, 2x2 taps
    # Tap u of parity a is tap 3 - a - 2u of the transposed convolution.
    return phases.permute(3, 2, 4, 0, 5, 1).reshape(c, k, 4, 4).flip(2, 3).contiguous()
