"""What every backend prepares, and what it makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from msf_kernels.shapes import FeatureMap


@dataclass(frozen=True, eq=False)
class FixedConvolution:
    """A convolution whose weights do not change any more; the one record that goes from `api` to the backends.

    Args:
        weight: [K, C, k, k], in the dtype that it came in; never changed.
        stride: Step of the output along both axes.
        padding: Zeros on each side.
        upsample: Whether the map is doubled by repeating every pixel first; then k is 3, the stride and the padding 1.
        dtype: Dtype of maps and results.
        channels_last: Memory format that maps usually come in.
        shortcut_weight: [K, Cs] of the shortcut's maps, or None.
    """

    weight: Tensor
    stride: int
    padding: int
    upsample: bool
    dtype: torch.dtype
    channels_last: bool
    shortcut_weight: Tensor | None = None

    def __repr__(self) -> str:
        """Return sizes instead of the weights."""
        n_out, n_in, size, _ = self.weight.shape
        doubled = " of the doubled map" if self.upsample else ""
        form = f"{n_in} -> {n_out}, stride {self.stride}, padding {self.padding}"
        return f"{size}x{size} convolution{doubled} {form} in {self.dtype} on {self.weight.device}"

    @property
    def memory_format(self) -> torch.memory_format:
        """`channels_last` as PyTorch names it."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def without_weights(self) -> Self:
        """Return the same record with the shape of the weights only, to be kept beside a layout of them."""
        shortcut = None if self.shortcut_weight is None else self.shortcut_weight.to("meta")
        return replace(self, weight=self.weight.to("meta"), shortcut_weight=shortcut)

    def out_shape(self, x: FeatureMap) -> tuple[int, int, int, int]:
        """Return the shape of the result for a map [N, C, H, W]."""
        factor = 2 if self.upsample else 1
        height, width = (
            (factor * size + 2 * self.padding - self.weight.shape[2]) // self.stride + 1 for size in x.shape[2:]
        )
        return x.shape[0], self.weight.shape[0], max(height, 0), max(width, 0)


class PreparedForm(Protocol):
    """A convolution with weights in the layout of one backend.

    One with a true attribute `is_whole` takes the shortcut's maps and the norm of the result as well, in two further
    arguments.
    """

    def __call__(
        self, x: FeatureMap, bias: Tensor | None, residual: FeatureMap | None, consume_residual: bool
    ) -> FeatureMap:
        """Return conv(x) + bias + residual, in the memory of `residual` where `consume_residual` permits it."""
        ...
