"""Cases of the class read-out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from msf_kernels.testing.case import InputDraw, OperatorCase, in_format


def _distance_case(
    label: str,
    n: int,
    channels: int,
    height: int,
    width: int,
    n_classes: int,
    *,
    layout: str = "contiguous",
    is_tied: bool = False,
) -> OperatorCase:
    """Return a case; `is_tied`: all classes are equally far from every pixel, exactly in any dtype."""

    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        if is_tied:
            signs = 1.0 - 2.0 * (torch.arange(n_classes) % 2)
            codes = signs[:, None].expand(n_classes, channels).contiguous()
            semantic = torch.zeros(n, channels, height, width)
            return semantic.to(inputs.dtype).to(inputs.device), codes.to(inputs.dtype).to(inputs.device)
        codes = inputs.normal(n_classes, channels)
        semantic = _without_near_ties(inputs.normal(n, channels, height, width), codes)
        return in_format(semantic, layout), codes

    def call(function: Callable[..., Any], dtype: torch.dtype, semantic: Tensor, codes: Tensor) -> Any:
        return function(semantic, codes)

    return OperatorCase("class_distance", label, draw, call, gradients_of=(0, 1))


def _without_near_ties(semantic: Tensor, codes: Tensor) -> Tensor:
    """Move every pixel onto its nearest code where rounding could decide which that is: votes are not continuous."""
    if len(codes) < 2:
        return semantic
    pixels = semantic.double().flatten(2).transpose(1, 2)  # [N, P, K]
    distance = (pixels[:, :, None] - codes.double()).square().sum(-1).sqrt()  # [N, P, n_classes]
    nearest, indices = distance.topk(2, dim=-1, largest=False)
    is_near = nearest[..., 1] - nearest[..., 0] < 1e-3
    moved = torch.where(is_near[..., None], codes[indices[..., 0]].double(), pixels)
    return moved.transpose(1, 2).reshape(semantic.shape).to(semantic.dtype)


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    yield _distance_case("tiny", 1, 1, 1, 1, 1)
    yield _distance_case("prime", 3, 5, 7, 11, 13)
    yield _distance_case("square", 8, 3, 8, 8, 8)
    yield _distance_case("ragged", 2, 7, 13, 17, 5)
    yield _distance_case("channels-last", 2, 4, 16, 16, 8, layout="channels_last")
    yield _distance_case("strided", 3, 3, 5, 9, 4, layout="strided")
    yield _distance_case("many pixels", 1, 3, 96, 128, 8)
    yield _distance_case("many classes", 2, 3, 8, 8, 70)
    yield _distance_case("ties", 2, 3, 5, 5, 6, is_tied=True)
    yield _distance_case("empty batch", 0, 3, 4, 4, 4)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    return _distance_case(
        label,
        rng.randint(1, 4),
        rng.randint(1, 9),
        rng.randint(1, 24),
        rng.randint(1, 24),
        rng.randint(1, 12),
        layout=rng.choice(["contiguous", "channels_last", "strided"]),
    )
