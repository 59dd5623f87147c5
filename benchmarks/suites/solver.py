"""Solvers: the time beyond the network, for a cheap linear field, and adaptive steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.agreement import same_numbers
from benchmarks.context import Context
from benchmarks.peers import solvers
from benchmarks.registry import Comparison, Job
from benchmarks.rows import OURS, ROOT
from benchmarks.solver_overhead import METHODS, LinearField, Overheads, checked, start
from benchmarks.timing import CLOCKS, Plan
from msf_kernels.solvers import odeint

SUITE = "solver"
TESTS = ("tests/msf_kernels/solvers/test_peers.py", "tests/msf_kernels/solvers/test_integrate.py")
# glibc then keeps what is freed, as it comes to do by itself once larger blocks were freed. Until then it may hand the
# peers' temporaries back to the system at every step, which costs them more than their arithmetic.
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}


def jobs() -> Iterator[Job]:
    yield SolverOverhead(
        suite=SUITE,
        name="solver-heun25-linear",
        note="25 Heun steps, state 64x8x32x32 float32; time beyond the evaluations",
        tests=TESTS,
        method="heun",
        goals={"torchdiffeq": 5.0, "torchode": 5.0},
    )
    yield SolverOverhead(
        suite=SUITE,
        name="solver-heun25-linear-1-thread",
        note="25 Heun steps, state 64x8x32x32 float32; time beyond the evaluations",
        tests=TESTS,
        method="heun",
        threads=1,
        goals={"torchdiffeq": 5.0, "torchode": 5.0},
    )
    yield SolverOverhead(
        suite=SUITE,
        name="solver-euler25-linear",
        note="25 Euler steps, state 64x8x32x32 float32; time beyond the evaluations",
        tests=TESTS,
        method="euler",
    )
    yield Comparison(
        suite=SUITE,
        name="solver-dopri5-linear",
        note="adaptive, rtol 1e-5, atol 1e-6, state 64x8x32x32 float32; whole time, each with its own steps",
        tests=("tests/msf_kernels/solvers/test_adaptive.py", "tests/msf_kernels/solvers/test_odeint.py"),
        variants={
            OURS: lambda context: _on_state(context, _ours_dopri5(LinearField())),
            "torchdiffeq": lambda context: _on_state(context, solvers.torchdiffeq_dopri5(LinearField())),
            "zuko": lambda context: _on_state(context, solvers.zuko_dopri5(LinearField())),
        },
        unit="ms",
        plan=Plan(n_rounds=31),
        agree=same_numbers(1e-4),
    )


def _ours_dopri5(linear: LinearField) -> Callable[[Tensor], Tensor]:
    def run(z: Tensor) -> Tensor:
        ends = torch.tensor([0.0, 1.0], device=z.device)
        trajectory: Tensor = odeint(lambda t, z: linear(z), z, ends, method="dopri5", rtol=1e-5, atol=1e-6)
        return trajectory[-1]

    return run


def _on_state(context: Context, run: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    z = start(context.device, quick=context.quick)
    return lambda: run(z)


@dataclass(frozen=True, kw_only=True)
class SolverOverhead(Job):
    """Time of solvers beyond their evaluations.

    A sample is the median of a process: where its memory lies moves the times more than its rounds differ.

    Args:
        method: One of `benchmarks.solver_overhead.METHODS`.
        threads: Of the processes; None: as many as this one has.
        n_processes: How many run, one after the other.
    """

    method: str
    threads: int | None = None
    n_processes: int = 7

    def measure(self, context: Context) -> None:
        """Run the processes; add overheads, and per peer how many times ours it takes."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads or threads)
        try:
            self._measure(context)
        finally:
            torch.set_num_threads(threads)

    def _measure(self, context: Context) -> None:
        n_processes = context.rounds or (1 if context.quick else self.n_processes)
        samples: dict[str, list[float]] = {}
        for _ in range(n_processes):
            found = self._run(context)
            for name, seconds in found.seconds.items():
                samples.setdefault(name, []).append(seconds)
        for name, reason in found.reasons.items():
            context.writer.add(self.name, name, "overhead", "ms", [], reason)
        for name, of_processes in samples.items():
            context.writer.add(self.name, name, "overhead", "ms", [1e3 * sample for sample in of_processes], self.note)
        context.writer.add_speedups(self.name, samples, dict.fromkeys(samples, self.note))

    def check(self, context: Context) -> None:
        """Check end states and evaluations."""
        with torch.inference_mode():
            checked(METHODS[self.method], start(context.device, quick=context.quick))

    def _run(self, context: Context) -> Overheads:
        command = [sys.executable, "-m", "benchmarks.solver_overhead", self.method]
        command += ["--device", context.device.type, "--threads", str(torch.get_num_threads())]
        command += ["--clock", next(name for name, clock in CLOCKS.items() if clock is context.clock)]
        command += ["--quick"] if context.quick else []
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | KEEP)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise AssertionError(f"{self.name}: {last}")
        return Overheads(**json.loads(done.stdout))
