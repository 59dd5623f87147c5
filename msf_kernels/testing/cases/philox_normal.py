"""Cases of the noise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.testing.case import NOISE_TOLERANCE, InputDraw, OperatorCase


def _noise_case(
    label: str,
    n: int,
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    stream: int = 0,
    first: int = 0,
    step: int = 1,
    in_memory: bool = False,
) -> OperatorCase:
    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        index = torch.arange(first, first + n * step, device=inputs.device)[::step]
        return (index, torch.tensor(seed, device=inputs.device)) if in_memory else (index,)

    def call(function: Callable[..., Any], dtype: torch.dtype, sample_index: Tensor, key: Tensor | None = None) -> Any:
        return function(sample_index, shape, seed if key is None else key, stream=stream, dtype=dtype)

    return OperatorCase("philox_normal", label, draw, call, tolerance=NOISE_TOLERANCE, is_exact=True)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    yield _noise_case("tiny", 1, (1,))
    yield _noise_case("prime", 3, (5, 7, 11), seed=7)
    yield _noise_case("square", 8, (3, 8, 8), stream=1)
    yield _noise_case("ragged", 2, (4, 13, 17), seed=2**63 - 1, stream=2**32 - 1)
    yield _noise_case("large index", 4, (3, 32, 32), first=(5 << 32) + 2**32 - 2)
    yield _noise_case("seed in memory", 5, (3, 7), seed=(7 << 32) + 3, stream=2, in_memory=True)
    yield _noise_case("strided", 4, (6,), step=3)
    yield _noise_case("scalar sample", 5, ())
    yield _noise_case("empty batch", 0, (3, 4, 4))
    yield _noise_case("empty map", 2, (3, 0))


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    return _noise_case(
        label,
        rng.randint(1, 6),
        tuple(rng.randint(1, 12) for _ in range(rng.randint(0, 3))),
        seed=rng.randrange(2**63),
        stream=rng.randrange(2**32),
        first=rng.randrange(2**60),
        step=rng.randint(1, 3),
    )
