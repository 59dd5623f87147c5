"""Timing variants of one job side by side: A B A B, so that drift of the machine hits all of them alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# More than the last-level cache of any processor or GPU that is measured here.
_EVICTION_BYTES = 256 << 20


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Args:
        n_rounds: Samples per variant.
        warm_up_seconds: Time that each variant runs unmeasured first.
        sample_seconds: A sample repeats the call until it takes about so long. With 0, and no warm-up, the first
            call is measured.
        clock: `time.perf_counter`, or `time.process_time` on a machine with other work: being interrupted then does
            not count. Only for one thread, since the times of threads add up. On CUDA, events of the device.
        cache: `warm`: what the last call left there. `cold`: every sample is one call after the caches were filled
            with something else.
    """

    n_rounds: int = 60
    warm_up_seconds: float = 0.3
    sample_seconds: float = 0.01
    clock: Callable[[], float] = time.perf_counter
    cache: Literal["warm", "cold"] = "warm"


@dataclass(frozen=True)
class Part:
    """A share of a variant's work.

    Args:
        call: Does it.
        weight: How often the whole work contains it; above 1 where a variant is too slow to run all of it.
    """

    call: Callable[[], object]
    weight: float = 1.0


Timed = Callable[[], object] | Sequence[Part]


def interleaved(variants: Mapping[str, Timed], plan: Plan, device: torch.device) -> dict[str, list[float]]:
    """Return seconds per call of every variant, `plan.n_rounds` samples each.

    The samples of one round were taken directly after each other, so the ratio of two variants is best taken within
    rounds. On CUDA a sample ends when the device has done its work.
    """
    parts = {name: [Part(timed)] if callable(timed) else list(timed) for name, timed in variants.items()}
    repeats = {name: [_warm_up(part.call, plan, device) for part in its] for name, its in parts.items()}
    samples: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.disable()
    try:
        for _ in range(plan.n_rounds):
            for name, its in parts.items():
                seconds = [
                    part.weight * _sample(part.call, n, plan, device)
                    for part, n in zip(its, repeats[name], strict=True)
                ]
                samples[name].append(sum(seconds))
    finally:
        gc.enable()
    return samples


def _warm_up(call: Callable[[], object], plan: Plan, device: torch.device) -> int:
    """Run for a while; return how many calls make a sample."""
    if plan.warm_up_seconds == 0 and plan.sample_seconds == 0:
        return 1
    fastest = _sample(call, 1, plan, device)
    end = plan.clock() + plan.warm_up_seconds
    while plan.clock() < end:
        fastest = min(fastest, _sample(call, 1, plan, device))
    if plan.cache == "cold":
        return 1
    return max(1, round(plan.sample_seconds / max(fastest, 1e-9)))


def _sample(call: Callable[[], object], repeats: int, plan: Plan, device: torch.device) -> float:
    if plan.cache == "cold":
        evict_caches(device)
    if device.type == "cuda":
        return _device_seconds(call, repeats) / repeats
    start = plan.clock()
    for _ in range(repeats):
        call()
    return (plan.clock() - start) / repeats


def _device_seconds(call: Callable[[], object], repeats: int) -> float:
    """Time between two events on the current stream, so that the host's clock and its wake-up do not count."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    started.record()
    for _ in range(repeats):
        call()
    ended.record()
    ended.synchronize()
    return float(started.elapsed_time(ended)) * 1e-3


def evict_caches(device: torch.device) -> None:
    """Write more memory than the caches hold."""
    torch.ones(_EVICTION_BYTES, dtype=torch.int8, device=device)
