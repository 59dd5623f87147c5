"""Cases of the group norm."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels.testing.case import InputDraw, OperatorCase, in_format


def _eager_group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """The norm as one writes it, in float32 and without the reference's centring: the mean it saves is rounded."""
    h = (x if skip is None else torch.cat([x, skip], dim=1)).float().contiguous()
    if add is not None:
        h = h + add.float()[:, :, None, None]
    y = torch.group_norm(h, num_groups, weight.float(), bias.float())
    if scale is not None:
        y = y * (1 + scale.float()[:, :, None, None])
    if shift is not None:
        y = y + shift.float()[:, :, None, None]
    return (functional.silu(y) if silu else y).to(x.dtype)


def _group_norm_case(
    label: str,
    n: int,
    channels: int,
    height: int,
    width: int,
    num_groups: int,
    *,
    skip_channels: int = 0,
    rows: str = "",
    is_shared: bool = False,
    layout: str = "contiguous",
    silu: bool = True,
    mean: float = 0.0,
    parameters: torch.dtype | None = None,
) -> OperatorCase:
    """Return a case; `rows` names the optional vectors: a (add), s (scale), h (shift)."""
    total = channels + skip_channels
    names = ["skip"] * bool(skip_channels) + [{"a": "add", "s": "scale", "h": "shift"}[letter] for letter in rows]

    def draw(inputs: InputDraw) -> tuple[Tensor, ...]:
        x = in_format(inputs.normal(n, channels, height, width, mean=mean), layout)
        tensors = [x, inputs.normal(total, dtype=parameters), inputs.normal(total, dtype=parameters)]
        if skip_channels:
            tensors.append(in_format(inputs.normal(n, skip_channels, height, width), layout))
        tensors += [inputs.normal(1 if is_shared else n, total, dtype=parameters, scale=0.5) for _ in rows]
        return tuple(tensors)

    def call(function: Callable[..., Any], dtype: torch.dtype, *tensors: Tensor) -> Any:
        x, weight, bias, *optional = tensors
        return function(x, num_groups, weight, bias, silu=silu, **dict(zip(names, optional, strict=True)))

    # PyTorch's gradients of an empty norm are NaN.
    yardsticks = (_eager_group_norm,) if n * height * width else ()
    return OperatorCase(
        "group_norm_silu", label, draw, call, gradients_of=tuple(range(3 + len(names))), yardsticks=yardsticks
    )


def fixed() -> Iterator[OperatorCase]:
    """Yield the shapes on which kernels break."""
    case = _group_norm_case
    yield case("tiny", 1, 1, 1, 1, 1)
    yield case("prime", 3, 35, 7, 11, 5)
    yield case("square", 8, 8, 8, 8, 4, rows="ash")
    yield case("ragged", 2, 35, 13, 17, 16, skip_channels=13, rows="a", is_shared=True)
    yield case("channels-last", 2, 64, 16, 16, 32, rows="sh", layout="channels_last", parameters=torch.float32)
    yield case("channels-last skip", 2, 24, 9, 9, 8, skip_channels=8, rows="a", layout="channels_last")
    yield case("strided", 3, 12, 6, 5, 4, layout="strided", rows="s", is_shared=True)
    yield case("unaligned", 2, 12, 8, 8, 4, skip_channels=4, layout="unaligned")
    yield case("large mean", 2, 16, 8, 8, 4, mean=100.0)
    yield case("no silu", 2, 16, 5, 5, 8, rows="sh", silu=False)
    yield case("many pixels", 1, 8, 128, 96, 2, layout="channels_last")
    yield case("empty batch", 0, 8, 4, 4, 2, rows="a")
    yield case("empty map", 2, 8, 0, 4, 2, skip_channels=8)


def randomised(rng: random.Random, label: str) -> OperatorCase:
    """Return a case with drawn sizes and options."""
    num_groups = rng.choice([1, 2, 3, 4, 8, 16])
    total = num_groups * rng.randint(1, 12)
    skip_channels = rng.choice([0, rng.randint(0, total - 1)])
    return _group_norm_case(
        label,
        rng.randint(1, 4),
        total - skip_channels,
        rng.randint(1, 24),
        rng.randint(1, 24),
        num_groups,
        skip_channels=skip_channels,
        rows="".join(letter for letter in "ash" if rng.random() < 0.5),
        is_shared=rng.random() < 0.5,
        layout=rng.choice(["contiguous", "channels_last", "strided"]),
        silu=rng.random() < 0.8,
        mean=rng.choice([0.0, 0.0, 10.0]),
        parameters=rng.choice([None, torch.float32]),
    )
