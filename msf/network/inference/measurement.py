"""How long evaluations of the published networks take here, in float32 and in bfloat16."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from msf.config import RECIPES
from msf.network.inference.form import InferenceForm, inference_form
from msf.network.unet import UNet
from msf.precision import Measured

# Recipe of a network, with the channels and the side of its joint state.
PUBLISHED = {"published-28": (6, 32), "published-224": (8, 32)}
MICRO_BATCHES = (1, 2, 4, 8, 16)


@torch.inference_mode()
def measure_precisions(
    n_rounds: int, *, recipes: Sequence[str] = tuple(PUBLISHED), micro_batches: Sequence[int] = MICRO_BATCHES
) -> Iterator[Measured]:
    """Yield one row per network and micro-batch: the smallest of some times, both precisions in turn.

    Weights are as a network is initialised; its time does not depend on them.

    Args:
        n_rounds: Timed evaluations per precision, >= 1.
        recipes: Names of recipes, among those of `PUBLISHED`.
        micro_batches: Samples per evaluation.
    """
    for recipe in recipes:
        channels, side = PUBLISHED[recipe]
        config = RECIPES[recipe].network
        network = UNet(config, channels, channels).eval()
        forms = [inference_form(network, (1.0,), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
        for n in micro_batches:
            z = torch.randn(n, channels, side, side)
            for form in forms:
                form(z, 1.0)
            rounds = [[_milliseconds(form, z) for form in forms] for _ in range(n_rounds)]
            fp32, bf16 = (round(min(times), 3) for times in zip(*rounds, strict=True))
            yield Measured(config.base_channels, n, fp32, bf16)


def _milliseconds(form: InferenceForm, z: Tensor) -> float:
    started = time.perf_counter()
    form(z, 1.0)
    return 1e3 * (time.perf_counter() - started)
