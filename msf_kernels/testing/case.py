"""A call of an operator on inputs that can be drawn again, for any dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import msf_kernels

# How far the normals of two backends may be apart, by the contract of philox_normal.
NOISE_TOLERANCE = 2e-6


class InputDraw:
    """Draws one call's inputs: normal numbers rounded to the dtype under test, on the device under test.

    Args:
        dtype: Dtype under test.
        device: Device under test.
        seed: Decides every number; drawn on the CPU, so that all devices see the same.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        """Keep the arguments and seed the generator."""
        self.dtype = dtype
        self.device = device
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, mean: float = 0.0, scale: float = 1.0) -> Tensor:
        """Return normal numbers in the dtype under test, or in the given one."""
        values = mean + scale * torch.randn(shape, generator=self._generator)
        return values.to(dtype or self.dtype).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1) in the dtype under test."""
        return torch.rand(shape, generator=self._generator).to(self.dtype).to(self.device)

    def integers(self, *shape: int, below: int) -> Tensor:
        """Return int64 numbers in [0, below)."""
        return torch.randint(below, shape, generator=self._generator).to(self.device)


@dataclass(frozen=True)
class OperatorCase:
    """A call of an operator on inputs that can be drawn again.

    Args:
        operator: Registered name, which is also the name of the public function.
        label: Name of the case.
        draw: Inputs of one call.
        call: `call(function, dtype, *inputs)` calls the operator, given without its selector. `dtype` is the one under
            test, or float64 for the oracle.
        gradients_of: Positions of the inputs whose gradients are checked.
        yardsticks: Plain formulas that set the error budget beside the reference, called as the operator.
        tolerance: Allowed beside the error budget, where two implementations differ by definition (noise).
        is_exact: Whether there is no budget, only the tolerance and the rounding of dtypes below float32.
        has_dtype: Whether the call depends on the dtype under test.
    """

    operator: str
    label: str
    draw: Callable[[InputDraw], tuple[Tensor, ...]]
    call: Callable[..., Any]
    gradients_of: tuple[int, ...] = ()
    yardsticks: tuple[Callable[..., Any], ...] = ()
    tolerance: float = 0.0
    is_exact: bool = False
    has_dtype: bool = True

    def function(self, backend: str) -> Callable[..., Any]:
        """Return the public function on one backend."""
        public = getattr(msf_kernels, self.operator)
        return lambda *args, **kwargs: public(*args, **kwargs, backend=backend)


def in_format(x: Tensor, layout: str) -> Tensor:
    """Return the values in another layout.

    Args:
        x: Values, [N, C, H, W].
        layout: `contiguous`, `channels_last`, `strided` (every other channel), or `unaligned`: contiguous, from one
            element behind an address that is a multiple of 16 bytes.
    """
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "strided":
        return torch.stack([x, torch.full_like(x, 7.0)], dim=2).flatten(1, 2)[:, ::2]
    if layout == "unaligned":
        return torch.cat([x.new_full((1,), 7.0), x.flatten()])[1:].view(x.shape)
    return x
