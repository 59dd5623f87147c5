"""What a run decides for all of its jobs, and the limits of the machine that it measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.rows import RowWriter
from benchmarks.timing import Plan

QUICK: dict[str, Any] = {"n_rounds": 2, "warm_up_seconds": 0.0, "sample_seconds": 0.0}


@dataclass(frozen=True)
class Limits:
    """Limits of a machine at its number of threads.

    Args:
        bytes_per_second: Read plus written by a copy that no cache holds.
        flops_per_second: Of a large square matmul, per dtype.
    """

    bytes_per_second: float
    flops_per_second: dict[torch.dtype, float]

    def least_seconds(self, flops: float, n_bytes: float, dtype: torch.dtype) -> float | None:
        """Return the time below which this work cannot be done; None where the dtype's rate was not measured."""
        rate = self.flops_per_second.get(dtype)
        return None if rate is None else max(flops / rate, n_bytes / self.bytes_per_second)


@dataclass
class Context:
    """What a run decides for all of its jobs.

    Args:
        device: Device under test.
        writer: Takes the rows.
        quick: Two samples per variant and small inputs: shows that everything works, measures nothing.
        full: Peers run all of their work, however slow.
        rounds: Samples per variant, instead of each job's own number.
        clock: Clock of the timing on a CPU.
        limits: Of the machine, measured in this run.
    """

    device: torch.device
    writer: RowWriter
    quick: bool = False
    full: bool = False
    rounds: int | None = None
    clock: Callable[[], float] = Plan.clock
    limits: Limits | None = None

    def plan(self, wanted: Plan) -> Plan:
        """Return a job's plan as this run wants it."""
        settings: dict[str, Any] = {**vars(wanted), "clock": self.clock}
        if self.quick:
            settings |= QUICK
        if self.rounds is not None:
            settings["n_rounds"] = self.rounds
        return Plan(**settings)
