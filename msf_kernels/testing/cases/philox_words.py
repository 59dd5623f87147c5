"""Cases of the noise's integer stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.testing.case import InputDraw, OperatorCase


def _words_case(label: str, n: int, *, below: int = 2**32, layout: str = "contiguous") -> OperatorCase:
    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        counter = inputs.integers(n, 4, below=below)
        return counter if layout == "contiguous" else counter.T.contiguous().T, inputs.integers(2, below=below)

    def call(function: Callable[..., Any], dtype: torch.dtype, counter: Tensor, key: Tensor) -> Any:
        return function(counter, key)

    return OperatorCase("philox_words", label, draw, call, is_exact=True, has_dtype=False)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    yield _words_case("tiny", 1)
    yield _words_case("prime", 1009)
    yield _words_case("higher bits", 65, below=2**62)
    yield _words_case("strided", 64, layout="strided")
    yield _words_case("empty batch", 0)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    return _words_case(label, rng.randint(1, 600), layout=rng.choice(["contiguous", "strided"]))
