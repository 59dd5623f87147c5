"""Solvers: the time beyond the network, for a cheap linear field, and adaptive steps.

All solvers of a job integrate the same field over the same span, in turn, and must agree on the end state. The
overhead of a run is its time less that of its evaluations alone, timed in the same round. `ours` keeps its states in a
workspace from step to step and run to run, as a loop over many batches does; `ours-allocating` is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.agreement import same_numbers
from benchmarks.peers import Unavailable, solvers
from benchmarks.registry import Comparison, Context, Job
from benchmarks.rows import OURS
from benchmarks.timing import Plan, interleaved
from msf_kernels.solvers import EULER, HEUN, Tableau, Workspace, integrate, odeint, uniform_grid

SUITE = "solver"
SHAPE = (64, 8, 32, 32)
QUICK_SHAPE = (4, 8, 8, 8)
N_STEPS = 25
RATE = -0.5
TESTS = ("tests/msf_kernels/solvers/test_peers.py", "tests/msf_kernels/solvers/test_integrate.py")


class LinearField:
    """dz/dt = RATE * z; counts its evaluations."""

    n_calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.n_calls += 1
        return z * RATE


Run = Callable[[Tensor], Tensor]
MakeRun = Callable[[LinearField], Run]


def jobs() -> Iterator[Job]:
    yield SolverOverhead(
        suite=SUITE,
        name="solver-heun25-linear",
        note="25 Heun steps, state 64x8x32x32 float32; time beyond the evaluations",
        tests=TESTS,
        runs={
            OURS: lambda linear: _ours(linear, HEUN, keeps_workspace=True),
            "ours-allocating": lambda linear: _ours(linear, HEUN, keeps_workspace=False),
            "torchdiffeq": lambda linear: solvers.torchdiffeq_heun(linear, N_STEPS),
            "torchode": lambda linear: solvers.torchode_heun(linear, N_STEPS),
            "diffusers": lambda linear: solvers.diffusers_heun(linear, N_STEPS),
            "zuko": lambda linear: solvers.zuko_heun(linear, N_STEPS),
        },
        n_evaluations=2 * N_STEPS,
        # diffusers ends with an Euler step.
        n_evaluations_of={"diffusers": 2 * N_STEPS - 1},
        goals={"torchdiffeq": 5.0, "torchode": 5.0},
    )
    yield SolverOverhead(
        suite=SUITE,
        name="solver-euler25-linear",
        note="25 Euler steps, state 64x8x32x32 float32; time beyond the evaluations",
        tests=TESTS,
        runs={
            OURS: lambda linear: _ours(linear, EULER, keeps_workspace=True),
            "torchdiffeq": lambda linear: solvers.torchdiffeq_euler(linear, N_STEPS),
            "torchode": lambda linear: solvers.torchode_euler(linear, N_STEPS),
            "diffusers": lambda linear: solvers.diffusers_euler(linear, N_STEPS),
        },
        n_evaluations=N_STEPS,
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


def _ours(linear: LinearField, tableau: Tableau, *, keeps_workspace: bool) -> Run:
    workspace = Workspace() if keeps_workspace else None
    grid = uniform_grid(N_STEPS)
    return lambda z: integrate(lambda z, t: linear(z), z, grid, tableau, workspace=workspace).state


def _ours_dopri5(linear: LinearField) -> Run:
    def run(z: Tensor) -> Tensor:
        ends = torch.tensor([0.0, 1.0], device=z.device)
        return odeint(lambda t, z: linear(z), z, ends, method="dopri5", rtol=1e-5, atol=1e-6)[-1]

    return run


def _state(context: Context) -> Tensor:
    shape = QUICK_SHAPE if context.quick else SHAPE
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(context.device)


def _on_state(context: Context, run: Run) -> Callable[[], Tensor]:
    z = _state(context)
    return lambda: run(z)


@dataclass(frozen=True, kw_only=True)
class SolverOverhead(Job):
    """Time of solvers beyond their evaluations.

    Args:
        runs: How to make each variant, `ours` first.
        n_evaluations: That each must make.
        n_evaluations_of: Of variants that make another number.
        plan: How long to measure.
    """

    runs: dict[str, MakeRun]
    n_evaluations: int
    n_evaluations_of: dict[str, int] = field(default_factory=dict)
    plan: Plan = field(default_factory=lambda: Plan(n_rounds=31))

    def measure(self, context: Context) -> None:
        """Check end states and evaluations, then time all variants and the evaluations alone in turn."""
        with torch.inference_mode():
            z, calls = self._checked(context)
            evaluations = f"{self.n_evaluations} evaluations"
            alone = {evaluations: lambda: _evaluate(z, self.n_evaluations)}
            seconds = interleaved(alone | calls, context.plan(self.plan), context.device)
        network = seconds.pop(evaluations)
        overheads = {
            name: [sample - part for sample, part in zip(samples, network, strict=True)]
            for name, samples in seconds.items()
        }
        for name, samples in overheads.items():
            context.writer.add(self.name, name, "overhead", "ms", [1e3 * sample for sample in samples], self.note)
        # A difference of two times can come out near zero on a busy machine; its ratio would mean nothing.
        least = 1e-3 * min(network)
        positive = {name: [max(sample, least) for sample in samples] for name, samples in overheads.items()}
        context.writer.add_speedups(self.name, positive, dict.fromkeys(positive, self.note))

    def check(self, context: Context) -> None:
        """Check end states and evaluations."""
        with torch.inference_mode():
            self._checked(context)

    def _checked(self, context: Context) -> tuple[Tensor, dict[str, Callable[[], Tensor]]]:
        z = _state(context)
        calls: dict[str, Callable[[], Tensor]] = {}
        for name, make in self.runs.items():
            linear = LinearField()
            try:
                run = make(linear)
            except Unavailable as reason:
                context.writer.add(self.name, name, "overhead", "ms", [], str(reason))
                continue
            end = run(z)
            wanted = self.n_evaluations_of.get(name, self.n_evaluations)
            if linear.n_calls != wanted:
                raise AssertionError(f"{self.name}: {name} made {linear.n_calls} evaluations, wanted {wanted}")
            exact = z * torch.tensor(RATE).exp()
            torch.testing.assert_close(end, exact, rtol=1e-2, atol=1e-2, msg=f"{self.name}: {name} is far off")
            calls[name] = lambda run=run: run(z)  # type: ignore[misc]
        ours = calls[OURS]()
        for name, call in calls.items():
            torch.testing.assert_close(call(), ours, rtol=1e-4, atol=1e-4, msg=f"{self.name}: {name} disagrees")
        return z, calls


def _evaluate(z: Tensor, n: int) -> Tensor:
    for _ in range(n):
        z = z * RATE
    return z
