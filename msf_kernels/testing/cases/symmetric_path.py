"""Cases of the training path."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.testing.case import NOISE_TOLERANCE, InputDraw, OperatorCase, in_format


def _path_case(
    label: str,
    n: int,
    channels: int,
    semantic_channels: int,
    height: int,
    width: int,
    *,
    n_times: int = 1,
    layouts: tuple[str, str] = ("contiguous", "contiguous"),
    seed: int = 3,
    sigma_min: float = 1e-4,
) -> OperatorCase:
    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        image = in_format(inputs.normal(n, channels, height, width), layouts[0])
        semantic = in_format(inputs.normal(n, semantic_channels, height, width), layouts[1])
        t = inputs.uniform(n, 2) if n_times == 2 else inputs.uniform(n)
        return image, semantic, t, inputs.integers(n, below=2**62)

    def call(function: Callable[..., Any], dtype: torch.dtype, *inputs: Tensor) -> Any:
        image, semantic, t, sample_index = inputs
        return function(image, semantic, t, sample_index=sample_index, seed=seed, sigma_min=sigma_min)

    return OperatorCase("symmetric_path", label, draw, call, gradients_of=(0, 1), tolerance=NOISE_TOLERANCE)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    yield _path_case("tiny", 1, 1, 1, 1, 1)
    yield _path_case("prime", 3, 5, 3, 7, 11, n_times=2)
    yield _path_case("square", 8, 3, 3, 8, 8)
    yield _path_case("ragged", 2, 4, 7, 13, 17, n_times=2, seed=2**63 - 1)
    yield _path_case("channels-last", 2, 4, 4, 16, 16, layouts=("channels_last", "channels_last"))
    yield _path_case("mixed formats", 3, 3, 2, 9, 10, layouts=("contiguous", "channels_last"), n_times=2)
    yield _path_case("strided", 3, 4, 2, 5, 7, layouts=("strided", "strided"))
    yield _path_case("unaligned", 2, 3, 2, 8, 8, layouts=("unaligned", "contiguous"))
    yield _path_case("no sigma", 2, 1, 1, 28, 28, sigma_min=0.0)
    yield _path_case("empty batch", 0, 3, 3, 4, 4)
    yield _path_case("empty map", 2, 3, 3, 0, 4, n_times=2)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    layouts = ["contiguous", "channels_last", "strided"]
    return _path_case(
        label,
        rng.randint(1, 5),
        rng.randint(1, 6),
        rng.randint(1, 6),
        rng.randint(1, 20),
        rng.randint(1, 20),
        n_times=rng.choice([1, 2]),
        layouts=(rng.choice(layouts), rng.choice(layouts)),
        seed=rng.randrange(2**63),
        sigma_min=rng.choice([1e-4, 0.0, 0.1]),
    )
