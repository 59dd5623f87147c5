"""Time of solvers beyond the network, in a process of its own: `python -m benchmarks.solver_overhead heun|euler ...`.

Every solver integrates the same cheap linear field over the same span, in turn, and must agree on the end state. The
overhead of a run is its time less that of its evaluations alone, timed in the same round. Prints one JSON object:
per solver the median overhead in seconds over the rounds, or why it could not run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor

from benchmarks.context import QUICK
from benchmarks.peers import Unavailable, solvers
from benchmarks.rows import OURS
from benchmarks.timing import CLOCKS, Plan, interleaved
from msf_kernels.solvers import EULER, HEUN, Tableau, Workspace, integrate, uniform_grid

SHAPE = (64, 8, 32, 32)
QUICK_SHAPE = (4, 8, 8, 8)
N_STEPS = 25
RATE = -0.5


class LinearField:
    """dz/dt = RATE * z; counts its evaluations."""

    n_calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.n_calls += 1
        return z * RATE


Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """Solvers that take the same steps.

    Args:
        runs: How to make each one's run, given the field; `ours` first.
        n_evaluations: That each must make.
        n_evaluations_of: Of solvers that make another number.
    """

    runs: Mapping[str, Callable[[LinearField], Run]]
    n_evaluations: int
    n_evaluations_of: Mapping[str, int] = field(default_factory=dict)


def _ours(linear: LinearField, tableau: Tableau, *, keeps_workspace: bool) -> Run:
    workspace = Workspace() if keeps_workspace else None
    grid = uniform_grid(N_STEPS)
    return lambda z: integrate(lambda z, t: linear(z), z, grid, tableau, workspace=workspace).state


def _method(
    tableau: Tableau,
    n_evaluations: int,
    peers: Mapping[str, Callable[[LinearField, int], Run]],
    n_evaluations_of: Mapping[str, int] | None = None,
) -> Method:
    # `ours` keeps its states in a workspace from step to step and run to run, as a loop over many batches does.
    runs: dict[str, Callable[[LinearField], Run]] = {
        OURS: lambda linear: _ours(linear, tableau, keeps_workspace=True),
        "ours-allocating": lambda linear: _ours(linear, tableau, keeps_workspace=False),
    }
    for name, make in peers.items():
        runs[name] = lambda linear, make=make: make(linear, N_STEPS)  # type: ignore[misc]
    return Method(runs, n_evaluations, n_evaluations_of or {})


METHODS = {
    "heun": _method(
        HEUN,
        2 * N_STEPS,
        {
            "torchdiffeq": solvers.torchdiffeq_heun,
            "torchode": solvers.torchode_heun,
            "diffusers": solvers.diffusers_heun,
            "zuko": solvers.zuko_heun,
        },
        {"diffusers": 2 * N_STEPS - 1},  # it ends with an Euler step
    ),
    "euler": _method(
        EULER,
        N_STEPS,
        {
            "torchdiffeq": solvers.torchdiffeq_euler,
            "torchode": solvers.torchode_euler,
            "diffusers": solvers.diffusers_euler,
        },
    ),
}


def start(device: torch.device, *, quick: bool) -> Tensor:
    """Return the state at the beginning, float32."""
    return torch.randn(QUICK_SHAPE if quick else SHAPE, generator=torch.Generator().manual_seed(0)).to(device)


def checked(method: Method, z: Tensor) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Run every solver once; return those that agree, and why others cannot run.

    Raises:
        AssertionError: One makes another number of evaluations, or ends elsewhere.
    """
    calls: dict[str, Callable[[], Tensor]] = {}
    reasons: dict[str, str] = {}
    for name, make in method.runs.items():
        linear = LinearField()
        try:
            run = make(linear)
        except Unavailable as reason:
            reasons[name] = str(reason)
            continue
        end = run(z)
        wanted = method.n_evaluations_of.get(name, method.n_evaluations)
        if linear.n_calls != wanted:
            raise AssertionError(f"{name} made {linear.n_calls} evaluations, wanted {wanted}")
        exact = z * torch.tensor(RATE).exp()
        torch.testing.assert_close(end, exact, rtol=1e-2, atol=1e-2, msg=f"{name} is far off")
        calls[name] = lambda run=run: run(z)  # type: ignore[misc]
    ours = calls[OURS]()
    for name, call in calls.items():
        torch.testing.assert_close(call(), ours, rtol=1e-4, atol=1e-4, msg=f"{name} disagrees with ours")
    return calls, reasons


def overheads(method: Method, z: Tensor, plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
    """Return each solver's median seconds beyond its evaluations, and why others cannot run.

    Raises:
        AssertionError: As for `checked`.
    """
    calls, reasons = checked(method, z)
    linear = LinearField()
    velocity_field = lambda z, t: linear(z)  # noqa: E731 - what every solver is given in one form or another

    def evaluations() -> None:
        state = z
        for _ in range(method.n_evaluations):
            state = velocity_field(state, 0.0)

    seconds = interleaved({"evaluations": evaluations} | calls, plan, z.device)
    network = seconds.pop("evaluations")
    # A difference of two times can come out near zero on a busy machine; its ratio would mean nothing.
    least = 1e-3 * min(network)
    return {
        name: max(least, median(sample - part for sample, part in zip(samples, network, strict=True)))
        for name, samples in seconds.items()
    }, reasons


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.solver_overhead", description=__doc__.partition(":")[0])
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # Long samples: a solver finds the caches as its own last run left them, not as another's.
    plan = Plan(n_rounds=11, sample_seconds=0.05, clock=CLOCKS[options.clock])
    if options.quick:
        plan = replace(plan, **QUICK)
    with torch.inference_mode():
        z = start(torch.device(options.device), quick=options.quick)
        seconds, reasons = overheads(METHODS[options.method], z, plan)
    print(json.dumps({"seconds": seconds, "reasons": reasons}))


if __name__ == "__main__":
    main()
