"""Cases of the 3x3 convolution."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.conv3x3 import pack_weight
from msf_kernels.testing.case import InputDraw, OperatorCase, in_format


def _conv_case(
    label: str,
    n: int,
    channels: int,
    height: int,
    width: int,
    n_out: int,
    *,
    skip_channels: int = 0,
    stride: int = 1,
    upsample: bool = False,
    is_packed: bool = True,
    has_residual: bool = False,
    has_bias: bool = True,
    layout: str = "channels_last",
    parameters: torch.dtype | None = torch.float32,
) -> OperatorCase:
    total = channels + skip_channels
    factor = 2 if upsample else 1
    out_shape = (n, n_out, factor * -(-height // stride), factor * -(-width // stride))
    names = ["residual"] * has_residual + ["skip"] * bool(skip_channels)

    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        x = in_format(inputs.normal(n, channels, height, width), layout)
        weight = inputs.normal(n_out, total, 3, 3, scale=(9 * total) ** -0.5)
        tensors = [x, pack_weight(weight, upsample=upsample) if is_packed else weight]
        tensors += [inputs.normal(n_out, dtype=parameters)] * has_bias
        tensors += [in_format(inputs.normal(*out_shape), layout)] * has_residual
        if skip_channels:
            tensors.append(in_format(inputs.normal(n, skip_channels, height, width), layout))
        return tuple(tensors)

    def call(function: Callable[..., Any], dtype: torch.dtype, *tensors: Tensor) -> Any:
        x, weight, *rest = tensors
        bias = rest.pop(0) if has_bias else None
        optional = dict(zip(names, rest, strict=True))
        return function(x, weight, bias, stride=stride, upsample=upsample, **optional)

    return OperatorCase("conv3x3", label, draw, call)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    case = _conv_case
    yield case("tiny", 1, 1, 1, 1, 1)
    yield case("prime", 3, 7, 5, 11, 13, has_residual=True)
    yield case("square", 8, 8, 8, 8, 16, has_residual=True)
    yield case("small maps", 11, 24, 4, 4, 20)
    yield case("ragged skip", 2, 20, 9, 8, 12, skip_channels=9, has_residual=True)
    yield case("channels-last", 2, 32, 12, 8, 64, has_residual=True)
    yield case("stride", 2, 16, 7, 10, 16, stride=2)
    yield case("stride residual", 2, 6, 8, 8, 8, stride=2, has_residual=True)
    yield case("upsample", 2, 16, 5, 7, 12, upsample=True)
    yield case("upsample all", 2, 8, 4, 4, 8, upsample=True, has_residual=True, skip_channels=4)
    yield case("contiguous", 2, 5, 6, 7, 6, layout="contiguous", is_packed=False, has_bias=False)
    yield case("strided", 2, 6, 5, 4, 6, layout="strided", is_packed=False, skip_channels=3)
    yield case("half parameters", 2, 8, 6, 6, 8, parameters=None)
    yield case("many channels", 1, 144, 3, 3, 136)
    yield case("empty batch", 0, 8, 4, 4, 8, has_residual=True)
    yield case("empty map", 2, 8, 0, 4, 8, upsample=True)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    kind = rng.choice(["plain", "plain", "stride", "upsample"])
    return _conv_case(
        label,
        rng.randint(1, 4),
        rng.randint(1, 40),
        rng.randint(1, 9),
        rng.randint(1, 9),
        rng.randint(1, 40),
        skip_channels=rng.choice([0, rng.randint(1, 24)]),
        stride=2 if kind == "stride" else 1,
        upsample=kind == "upsample",
        # Summed taps are rounded once more than the definition on the large map is.
        is_packed=kind == "upsample" or rng.random() < 0.5,
        has_residual=rng.random() < 0.5,
        has_bias=rng.random() < 0.8,
        layout=rng.choice(["channels_last", "channels_last", "contiguous", "strided"]),
        parameters=rng.choice([None, torch.float32]),
    )
