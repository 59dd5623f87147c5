"""Timing variants of one job side by side: A B A B, so that drift of the machine hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Args:
        n_rounds: Samples per variant.
        warm_up_seconds: Time that each variant runs unmeasured first.
        sample_seconds: A sample repeats the call until it takes about so long.
        clock: `time.perf_counter`, or `time.process_time` on a machine with other work: being interrupted then does
            not count. Only for one thread, since the times of threads add up.
    """

    n_rounds: int = 60
    warm_up_seconds: float = 0.3
    sample_seconds: float = 0.01
    clock: Callable[[], float] = time.perf_counter


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    plan: Plan,
    device: torch.device,
) -> dict[str, list[float]]:
    """Return seconds per call of every variant, `plan.n_rounds` samples each.

    The samples of one round were taken directly after each other, so the ratio of two variants is best taken within
    rounds. On CUDA a sample ends when the device has done its work.
    """
    repeats = {name: _warm_up(call, plan, device) for name, call in variants.items()}
    samples: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.disable()
    try:
        for _ in range(plan.n_rounds):
            for name, call in variants.items():
                samples[name].append(_sample(call, repeats[name], plan, device))
    finally:
        gc.enable()
    return samples


def _warm_up(call: Callable[[], object], plan: Plan, device: torch.device) -> int:
    """Run for a while; return how many calls make a sample."""
    fastest = _sample(call, 1, plan, device)
    end = plan.clock() + plan.warm_up_seconds
    while plan.clock() < end:
        fastest = min(fastest, _sample(call, 1, plan, device))
    return max(1, round(plan.sample_seconds / max(fastest, 1e-9)))


def _sample(call: Callable[[], object], repeats: int, plan: Plan, device: torch.device) -> float:
    _wait(device)
    start = plan.clock()
    for _ in range(repeats):
        call()
    _wait(device)
    return (plan.clock() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
