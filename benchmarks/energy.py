"""Energy and clocks of a GPU while it works, through NVIDIA's management library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.peers import Unavailable, require

# The counter is updated some ten times a second.
_LEAST_SECONDS = 2.0


def energy_per_call(calls: Sequence[Callable[[], object]]) -> Iterator[tuple[str, str, float]]:
    """Run calls for a few seconds and yield (metric, unit, value): joules per round of calls, watts, clock at the end.

    Raises:
        Unavailable: The library is missing or cannot read this GPU.
    """
    pynvml = require("pynvml", "nvidia-ml-py")
    try:
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        torch.cuda.synchronize()
        before, started = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter()
        n_rounds = 0
        while time.perf_counter() - started < _LEAST_SECONDS:
            for call in calls:
                call()
            torch.cuda.synchronize()
            n_rounds += 1
        joules = 1e-3 * (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - before)
        seconds = time.perf_counter() - started
        clock = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
    except pynvml.NVMLError as error:
        raise Unavailable(f"energy cannot be read: {error}") from error
    yield "energy", "J", joules / n_rounds
    yield "power", "W", joules / seconds
    yield "sm_clock", "MHz", float(clock)
