"""Cases of the norm's factor and offset."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.partial_moments import map_moments
from msf_kernels.testing.case import InputDraw, OperatorCase


def _affine_case(
    label: str,
    n: int,
    channels: int,
    height: int,
    width: int,
    num_groups: int,
    bundle: int,
    *,
    skip_channels: int = 0,
    is_skip_upsampled: bool = False,
    rows: str = "",
    is_shared: bool = False,
    mean: float = 0.0,
) -> OperatorCase:
    """Return a case; `rows` names the optional vectors: s (scale), h (shift). Moments are float32 for every dtype."""
    total = channels + skip_channels
    names = ["skip_moments"] * bool(skip_channels) + [{"s": "scale", "h": "shift"}[letter] for letter in rows]

    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        def moments(channels: int, upsample: bool) -> Tensor:
            feature_map = inputs.normal(n, channels, height, width, dtype=torch.float32, mean=mean)
            return map_moments(feature_map, bundle, upsample=upsample)

        tensors = [moments(channels, False), inputs.normal(total), inputs.normal(total)]
        if skip_channels:
            tensors.append(moments(skip_channels, is_skip_upsampled))
        tensors += [inputs.normal(1 if is_shared else n, total, scale=0.5) for _ in rows]
        return tuple(tensors)

    def call(function: Callable[..., Any], dtype: torch.dtype, *tensors: Tensor) -> Any:
        moments, weight, bias, *optional = tensors
        return function(moments, num_groups, weight, bias, **dict(zip(names, optional, strict=True)))

    return OperatorCase("norm_affine", label, draw, call)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    case = _affine_case
    yield case("tiny", 1, 1, 1, 1, 1, 1)
    yield case("prime", 3, 35, 7, 11, 5, 7)
    yield case("square", 8, 32, 8, 8, 4, 4, rows="sh")
    yield case("channels-last", 2, 64, 16, 16, 32, 2, rows="sh", is_shared=True)
    yield case("seam in a group", 2, 24, 8, 8, 3, 4, skip_channels=12, rows="h")
    yield case("other chunks", 2, 16, 16, 12, 4, 4, skip_channels=16, is_skip_upsampled=True, rows="s")
    yield case("large mean", 2, 16, 12, 12, 4, 2, mean=100.0)
    yield case("many groups", 2, 80, 3, 3, 40, 1)
    yield case("empty batch", 0, 8, 4, 4, 2, 4)
    yield case("empty map", 2, 8, 0, 4, 2, 2)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    bundle = rng.choice([1, 2, 3, 4, 8])
    num_groups = rng.choice([1, 2, 3, 5, 8])
    n_bundles = num_groups * rng.randint(1, 5)
    n_skip = rng.choice([0, rng.randint(0, n_bundles - 1)])
    return _affine_case(
        label,
        rng.randint(1, 4),
        bundle * (n_bundles - n_skip),
        2 * rng.randint(1, 9),
        2 * rng.randint(1, 9),
        num_groups,
        bundle,
        skip_channels=bundle * n_skip,
        is_skip_upsampled=rng.random() < 0.5,
        rows="".join(letter for letter in "sh" if rng.random() < 0.5),
        is_shared=rng.random() < 0.5,
        mean=rng.choice([0.0, 0.0, 10.0]),
    )
