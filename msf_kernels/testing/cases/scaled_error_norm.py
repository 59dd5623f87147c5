"""Cases of the error ratio of a step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.testing.case import InputDraw, OperatorCase, in_format

_DOPRI5 = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def _error_case(
    label: str,
    shape: tuple[int, ...],
    weights: tuple[float, ...],
    dt: float | None,
    *,
    state_dtype: torch.dtype | None = None,
    layouts: tuple[str, str] = ("contiguous", "contiguous"),
    tolerances: tuple[float, float] = (1e-2, 1e-3),
) -> OperatorCase:
    """Return a case; `dt` None: one step per item. `layouts` of the states and the slopes."""

    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        states = [in_format(inputs.normal(*shape, dtype=state_dtype), layouts[0]) for _ in range(2)]
        slopes = [in_format(inputs.normal(*shape), layouts[1]) for _ in weights]
        return (*states, *slopes) if dt is not None else (*states, inputs.normal(shape[0]), *slopes)

    def call(function: Callable[..., Any], dtype: torch.dtype, state: Tensor, next_state: Tensor, *rest: Tensor) -> Any:
        step, slopes = (dt, rest) if dt is not None else (rest[0], rest[1:])
        return function(state, next_state, slopes, weights, step, *tolerances)

    return OperatorCase("scaled_error_norm", label, draw, call)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    case, last = _error_case, "channels_last"
    yield case("tiny", (1,), (1.0,), 0.25)
    yield case("prime", (3, 5, 7, 11), (0.25, 0.0, 0.75), None)
    yield case("square", (8, 3, 8, 8), (0.5, -0.5), None)
    yield case("ragged", (2, 6, 13, 17), _DOPRI5, -0.04)
    yield case("channels-last", (2, 6, 16, 16), (0.5, -0.5), 0.1, layouts=(last, last))
    yield case("more channels than rows", (2, 70, 8, 9), (0.5, -0.5), 0.1, layouts=(last, last))
    yield case("mixed formats", (2, 6, 9, 8), (0.5, -0.5), None, layouts=(last, "contiguous"))
    yield case("strided", (3, 4, 5, 7), (1.0, -0.5), 0.3, layouts=("strided", "strided"))
    yield case("fp32 state", (4, 6, 8, 8), (0.5, -0.5), None, state_dtype=torch.float32)
    yield case("large", (2, 3, 64, 65), _DOPRI5, None)
    yield case("one long item", (1, 20_011), (1.0, -0.5), 0.04)
    yield case("absolute only", (2, 3, 4, 4), (1.0,), 0.5, tolerances=(0.0, 0.1))
    yield case("no slope", (2, 3, 4, 4), (), 0.5)
    yield case("empty batch", (0, 3, 4, 4), (0.5, -0.5), None)
    yield case("empty map", (2, 3, 0, 4), (1.0,), 0.5)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    layouts = ["contiguous", "channels_last", "strided"]
    return _error_case(
        label,
        (rng.randint(1, 5), rng.randint(1, 9), rng.randint(1, 40), rng.randint(1, 40)),
        tuple(rng.choice([0.0, 0.5, 1.0, rng.uniform(-1, 1)]) for _ in range(rng.randint(0, 7))),
        rng.choice([None, rng.uniform(-1, 1)]),
        state_dtype=rng.choice([None, torch.float32]),
        layouts=(rng.choice(layouts), rng.choice(layouts)),
        tolerances=(rng.uniform(0, 0.1), rng.uniform(1e-3, 0.1)),
    )
