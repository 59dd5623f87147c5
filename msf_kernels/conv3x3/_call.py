"""One call of the convolution: what travels from the public function to the backends and to the registered operator."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ConvCall(NamedTuple):
    """Arguments of `msf_kernels.conv3x3`, checked there; in the order of the registered operator's schema."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None = None
    skip: Tensor | None = None
    stride: int = 1
    upsample: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that were given."""
        return [value for value in self if isinstance(value, Tensor)]

    @property
    def in_channels(self) -> int:
        """Channels of `x` and `skip` together."""
        return self.x.shape[1] + (0 if self.skip is None else self.skip.shape[1])

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the result."""
        factor = 2 if self.upsample else 1
        height, width = self.x.shape[2:]
        return factor * -(-height // self.stride), factor * -(-width // self.stride)
