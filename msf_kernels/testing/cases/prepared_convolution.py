"""Cases of the prepared convolution."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from msf_kernels.prepared import OutputNorm
from msf_kernels.testing.case import InputDraw, OperatorCase, in_format


def _case(
    label: str,
    n: int,
    channels: int,
    height: int,
    width: int,
    n_out: int,
    *,
    size: int = 3,
    stride: int = 1,
    upsample: bool = False,
    has_bias: bool = True,
    has_residual: bool = False,
    shortcut: tuple[int, ...] = (),
    num_groups: int = 0,
    layout: str = "channels_last",
) -> OperatorCase:
    factor = 2 if upsample else 1
    out_shape = (n, n_out, factor * -(-height // stride), factor * -(-width // stride))

    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        x = in_format(inputs.normal(n, channels, height, width), layout)
        # Multiples of 1/8: taps that are summed for a doubled map are then summed without rounding in every dtype.
        weight = (8 * inputs.normal(n_out, channels, size, size)).round().clamp(-16, 16) / 8
        tensors = [x, weight]
        tensors += [inputs.normal(n_out)] * has_bias
        tensors += [in_format(inputs.normal(*out_shape), layout)] * has_residual
        if num_groups:
            tensors += [inputs.normal(n_out, mean=1.0), inputs.normal(n_out)]
        if shortcut:
            tensors.append(inputs.normal(n_out, sum(shortcut)))
            tensors += [in_format(inputs.normal(n, each, *out_shape[2:]), layout) for each in shortcut]
        return tuple(tensors)

    def call(function: Callable[..., Any], dtype: Any, *tensors: Tensor) -> Any:
        x, weight, *rest = tensors
        bias = rest.pop(0) if has_bias else None
        residual = rest.pop(0) if has_residual else None
        norm = OutputNorm(num_groups, rest.pop(0), rest.pop(0)) if num_groups else None
        prepared = function(
            weight,
            bias,
            stride=stride,
            padding=size // 2,
            upsample=upsample,
            channels_last=layout == "channels_last",
            shortcut_weight=rest.pop(0) if shortcut else None,
        )
        # In which memory format the result comes is left to the backend.
        return prepared(x, residual=residual, shortcut=rest, norm=norm).contiguous()

    return OperatorCase("prepared_convolution", label, draw, call)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    yield _case("tiny", 1, 1, 1, 1, 1)
    yield _case("prime", 3, 7, 5, 11, 13, has_residual=True)
    yield _case("square", 8, 8, 8, 8, 8, has_residual=True)
    yield _case("one pixel", 3, 12, 6, 5, 20, size=1)
    yield _case("one pixel residual", 2, 16, 4, 4, 8, size=1, has_residual=True, has_bias=False)
    yield _case("wide taps", 2, 3, 9, 7, 4, size=5)
    yield _case("stride", 2, 16, 8, 10, 16, stride=2)
    yield _case("odd stride", 2, 6, 7, 9, 8, stride=2, has_residual=True)
    yield _case("upsample", 2, 16, 5, 7, 12, upsample=True)
    yield _case("upsample residual", 2, 8, 4, 4, 8, upsample=True, has_residual=True, has_bias=False)
    yield _case("contiguous", 2, 5, 6, 7, 6, layout="contiguous", has_residual=True)
    yield _case("strided", 2, 6, 5, 4, 6, layout="strided")
    yield _case("many channels", 1, 144, 3, 3, 136)
    yield _case("shortcut", 2, 16, 5, 4, 24, shortcut=(12,))
    yield _case("two shortcuts", 3, 8, 4, 4, 20, shortcut=(16, 9), has_residual=True)
    yield _case("shortcut of a doubled map", 2, 8, 3, 4, 16, upsample=True, shortcut=(5, 3))
    yield _case("norm", 3, 16, 8, 8, 32, num_groups=8)
    yield _case("norm of odd maps", 2, 16, 5, 7, 24, num_groups=12, has_residual=True)
    yield _case("norm of a large map", 2, 8, 9, 9, 16, num_groups=4)
    yield _case("norm of odd groups", 2, 8, 4, 4, 24, num_groups=8, shortcut=(6,))
    yield _case("norm after a step", 2, 8, 9, 8, 16, stride=2, num_groups=4)
    yield _case("norm of a doubled map", 2, 8, 2, 3, 16, upsample=True, num_groups=4)
    yield _case("empty batch", 0, 8, 4, 4, 8, has_residual=True)
    yield _case("empty batch with all", 0, 8, 4, 4, 8, shortcut=(4, 4), num_groups=2)
    yield _case("empty map", 2, 8, 0, 4, 8, upsample=True)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    kind = rng.choice(["plain", "plain", "one pixel", "stride", "upsample"])
    return _case(
        label,
        rng.randint(1, 4),
        rng.randint(1, 40),
        rng.randint(1, 9),
        rng.randint(1, 9),
        rng.randint(1, 40),
        size=1 if kind == "one pixel" else 3,
        stride=2 if kind == "stride" else 1,
        upsample=kind == "upsample",
        has_bias=rng.random() < 0.8,
        has_residual=rng.random() < 0.5,
        shortcut=rng.choice([(), (), (rng.randint(1, 20),), (rng.randint(1, 9), rng.randint(1, 20))]),
        num_groups=rng.choice([0, 0, 1]),
        layout=rng.choice(["channels_last", "contiguous", "strided"]),
    )
