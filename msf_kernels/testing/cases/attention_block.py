"""Cases of the attention block."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.attention_block import attention_block
from msf_kernels.testing.case import InputDraw, OperatorCase, in_format


def _one_by_one(*args: Any, **kwargs: Any) -> Tensor:
    """The steps as separate operators round their results: the smallest change of a score moves a row's weights."""
    return attention_block(*args, **kwargs, backend="composed")


def _block_case(
    label: str,
    n: int,
    channels: int,
    height: int,
    width: int,
    num_groups: int,
    num_heads: int,
    *,
    order: str = "legacy",
    layout: str = "channels_last",
    has_bias: bool = True,
    parameters: torch.dtype | None = torch.float32,
    mean: float = 0.0,
) -> OperatorCase:
    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        x = in_format(inputs.normal(n, channels, height, width, mean=mean), layout)
        scale = channels**-0.5
        return (
            x,
            inputs.normal(channels, dtype=parameters, mean=1.0, scale=0.2),
            inputs.normal(channels, dtype=parameters, scale=0.2),
            inputs.normal(3 * channels, channels, scale=scale),
            inputs.normal(channels, channels, scale=scale),
            *([inputs.normal(size, dtype=parameters) for size in (3 * channels, channels)] if has_bias else []),
        )

    def call(function: Callable[..., Any], dtype: torch.dtype, *tensors: Tensor) -> Any:
        x, norm_weight, norm_bias, qkv_weight, proj_weight, *biases = tensors
        qkv_bias, proj_bias = biases or (None, None)
        return function(
            x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, num_groups, num_heads, order=order
        )

    return OperatorCase("attention_block", label, draw, call, yardsticks=(_one_by_one,))


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    case = _block_case
    yield case("tiny", 1, 1, 1, 1, 1, 1)
    yield case("prime", 3, 35, 5, 7, 5, 7)
    yield case("square", 8, 16, 8, 8, 4, 2, order="new")
    yield case("small maps", 9, 32, 4, 4, 8, 2)
    yield case("channels-last", 2, 64, 12, 11, 16, 2)
    yield case("contiguous", 2, 24, 6, 5, 2, 3, layout="contiguous", order="new")
    yield case("strided", 2, 16, 4, 5, 4, 1, layout="strided", has_bias=False)
    yield case("half parameters", 2, 32, 8, 8, 8, 2, parameters=None)
    yield case("large mean", 2, 32, 8, 4, 4, 2, mean=10.0)
    yield case("empty batch", 0, 16, 4, 4, 4, 2)
    yield case("empty map", 2, 16, 0, 4, 4, 2)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    num_heads = rng.choice([1, 2, 4])
    num_groups = rng.choice([1, 2, 3, 8])
    unit = num_heads * num_groups
    return _block_case(
        label,
        rng.randint(1, 3),
        unit * rng.randint(1, max(1, 48 // unit)),
        rng.randint(1, 9),
        rng.randint(1, 9),
        num_groups,
        num_heads,
        order=rng.choice(["legacy", "new"]),
        layout=rng.choice(["channels_last", "channels_last", "contiguous", "strided"]),
        has_bias=rng.random() < 0.8,
        parameters=rng.choice([None, torch.float32]),
    )
