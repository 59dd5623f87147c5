"""Cases of the Runge-Kutta combination."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.testing.case import InputDraw, OperatorCase, in_format


def _rk_case(
    label: str,
    shape: tuple[int, ...],
    weights: tuple[float, ...],
    dt: float | None,
    *,
    state_dtype: torch.dtype | None = None,
    is_cast: bool = False,
    layouts: tuple[str, str] = ("contiguous", "contiguous"),
) -> OperatorCase:
    """Return a case; `dt` None: one step per item. `layouts` of the state and the slopes."""

    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        state = in_format(inputs.normal(*shape, dtype=state_dtype), layouts[0])
        slopes = [in_format(inputs.normal(*shape), layouts[1]) for _ in weights]
        return (state, *slopes) if dt is not None else (state, inputs.normal(shape[0]), *slopes)

    def call(function: Callable[..., Any], dtype: torch.dtype, state: Tensor, *rest: Tensor) -> Any:
        step, slopes = (dt, rest) if dt is not None else (rest[0], rest[1:])
        return function(state, slopes, weights, step, cast_to=dtype if is_cast else None)

    # A slope of weight 0 is not read, so it has no gradient.
    first_slope = 1 if dt is not None else 2
    wanted = [*range(first_slope)] + [first_slope + i for i, weight in enumerate(weights) if weight != 0]
    if not any(weights):
        wanted = [0]
    return OperatorCase("rk_combine", label, draw, call, gradients_of=tuple(wanted))


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    case = _rk_case
    dopri5 = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
    yield case("tiny", (1,), (1.0,), 0.25)
    yield case("prime", (3, 5, 7, 11), (0.25, 0.0, 0.75), None)
    yield case("square", (8, 3, 8, 8), (0.5, 0.5), None)
    yield case("ragged", (2, 6, 13, 17), dopri5, -0.04)
    yield case("channels-last", (2, 6, 16, 16), (0.5, 0.5), 0.1, layouts=("channels_last", "channels_last"))
    yield case("mixed formats", (2, 6, 9, 8), (0.5, 0.5), None, layouts=("channels_last", "contiguous"))
    yield case("strided", (3, 4, 5, 7), (1.0, -0.5), 0.3, layouts=("strided", "strided"))
    yield case("unaligned", (2, 3, 8, 8), (1.0, -0.5), 0.3, layouts=("contiguous", "unaligned"))
    yield case("fp32 state", (4, 6, 8, 8), (0.5, 0.5), -0.04, state_dtype=torch.float32, is_cast=True)
    yield case("fp32 state, steps", (4, 6, 8, 8), (1 / 6, 1 / 3, 1 / 3, 1 / 6), None, state_dtype=torch.float32)
    yield case("large", (2, 3, 64, 64), (1.0,), 0.04, is_cast=True)
    yield case("no slope", (2, 3, 4, 4), (), 0.5)
    yield case("empty batch", (0, 3, 4, 4), (0.5, 0.5), None)
    yield case("empty map", (2, 3, 0, 4), (1.0,), 0.5)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    shape = (rng.randint(1, 5), rng.randint(1, 9), rng.randint(1, 20), rng.randint(1, 20))
    layouts = ["contiguous", "channels_last", "strided"]
    return _rk_case(
        label,
        shape,
        tuple(rng.choice([0.0, 0.5, 1.0, rng.uniform(-1, 1)]) for _ in range(rng.randint(0, 7))),
        rng.choice([None, rng.uniform(-1, 1)]),
        state_dtype=rng.choice([None, torch.float32]),
        is_cast=rng.random() < 0.3,
        layouts=(rng.choice(layouts), rng.choice(layouts)),
    )
