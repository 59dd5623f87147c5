"""The steps of the convolution in plain PyTorch, which the definition and the library backend share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels._derivatives import any_transformed


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which the definition computes."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def concatenated(x: Tensor, skip: Tensor | None) -> Tensor:
    """Return what is convolved; [N, C, H, W]."""
    return x if skip is None else torch.cat([x, skip], dim=1)


def convolved(h: Tensor, weight: Tensor, bias: Tensor | None, stride: int, upsample: bool) -> Tensor:
    """Convolve in the dtype of h; weight is [K, C, 3, 3], or [4, K, C, 2, 2] summed beforehand; [N, K, OH, OW]."""
    n, _, height, width = h.shape
    if n * height * width == 0:
        factor = 2 if upsample else 1
        shape = (n, weight.shape[-4], factor * -(-height // stride), factor * -(-width // stride))
        # Without elements, but not without gradients, which are zero.
        return h.new_zeros(shape) + sum(x.sum() for x in (h, weight, bias) if x is not None)
    if weight.dim() == 4:
        if upsample:
            h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
        return functional.conv2d(h, weight, bias, stride=stride, padding=1)
    padded = functional.pad(h, (1, 1, 1, 1))

    def phase(a: int, b: int) -> Tensor:
        """Return the pixels of one parity of the output's row and column."""
        window = padded[:, :, a : a + height + 1, b : b + width + 1]
        return functional.conv2d(window, weight[2 * a + b], bias)

    if any_transformed((h, weight, bias)):  # vmap may not fill a tensor that it does not follow
        rows = [torch.stack([phase(a, b) for b in (0, 1)], dim=-1) for a in (0, 1)]  # [N, K, H, W, 2]
        return torch.stack(rows, dim=3).reshape(n, weight.shape[1], 2 * height, 2 * width)
    out = h.new_empty(n, weight.shape[1], 2 * height, 2 * width).contiguous(memory_format=torch.channels_last)
    for a in (0, 1):
        for b in (0, 1):
            out[:, :, a::2, b::2] = phase(a, b)
    return out


def packed(weight: Tensor, upsample: bool) -> Tensor:
    """Return the weight as the kernels read it, a view of the packed form; [phases, K, side, side, C], contiguous."""
    if weight.dim() == 5:
        return weight.permute(0, 1, 3, 4, 2).contiguous()
    if upsample:
        return packed(summed_weight(weight), upsample)
    return weight.permute(0, 2, 3, 1).contiguous()[None]


def summed_weight(weight: Tensor) -> Tensor:
    """Return the 2x2 taps of each output parity; [K, C, 3, 3] -> [4, K, C, 2, 2], each phase channels-last.

    Even rows of the output see rows i - 1, i, i of the small map, odd ones i, i, i + 1: taps on one row are summed.
    """
    wide = weight.to(compute_dtype(weight))
    by_parity = [_sum_pairs(rows, 3) for rows in _sum_pairs(wide, 2)]  # additions, which no autocast touches
    phases = torch.stack([taps for columns in by_parity for taps in columns]).to(weight.dtype)
    return phases.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


def _sum_pairs(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return the two kernels of length 2, one per parity of the output, that one of length 3 along an axis becomes."""
    a, b, c = weight.unbind(axis)
    return torch.stack([a, b + c], axis), torch.stack([a + b, c], axis)
