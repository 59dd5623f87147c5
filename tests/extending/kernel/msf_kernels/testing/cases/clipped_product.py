"""Cases of the clipped product."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.testing.case import InputDraw, OperatorCase


def _case(label: str, *shape: int, limit: float = 1.0) -> OperatorCase:
    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        return inputs.normal(*shape), inputs.normal(*shape)

    def call(function: Callable[..., Any], dtype: torch.dtype, x: Tensor, y: Tensor) -> Any:
        return function(x, y, limit)

    return OperatorCase("clipped_product", label, draw, call)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    yield _case("tiny", 1)
    yield _case("prime", 7, 11, 13)
    yield _case("square", 8, 8)
    yield _case("several blocks", 3, 1025, limit=0.5)
    yield _case("empty batch", 0, 5)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    return _case(label, rng.randint(1, 9), rng.randint(1, 300), limit=rng.uniform(0.1, 3.0))
