"""Time that a solver spends beyond the network: 25 Heun steps of a cheap linear field, ours against its peers.

    python -m benchmarks.solver_overhead [--out FILE] [--clock cpu]

All solvers integrate the same field over the same grid in one process, in turn (A B C A B C ...), and must agree on
the end state and make the same number of evaluations. The overhead of a run is its time less that of its 50
evaluations, which are timed in the same turn. `ours` keeps its states in a workspace from step to step and run to
run, as a loop over many batches does; `ours-allocating` is the default, without one. On a machine with other work
use `--clock cpu --threads 1`: time of the processor, not of the wall, so that being interrupted does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rows import RowWriter
from msf_kernels.solvers import HEUN, Workspace, integrate, uniform_grid

SHAPE = (64, 8, 32, 32)
N_STEPS = 25
RATE = -0.5


class Field:
    """A linear field that counts its evaluations."""

    n_calls = 0

    def __call__(self, z: Tensor) -> Tensor:
        self.n_calls += 1
        return z * RATE


field = Field()


workspace = Workspace()


def ours(z: Tensor) -> Tensor:
    return integrate(lambda z, t: field(z), z, uniform_grid(N_STEPS), HEUN, workspace=workspace).state


def ours_allocating(z: Tensor) -> Tensor:
    return integrate(lambda z, t: field(z), z, uniform_grid(N_STEPS), HEUN).state


def with_torchdiffeq(z: Tensor) -> Tensor:
    from torchdiffeq import odeint

    end: Tensor = odeint(
        lambda t, z: field(z), z, torch.tensor([0.0, 1.0]), method="heun2", options={"step_size": 1 / N_STEPS}
    )[-1]
    return end


def with_torchode(z: Tensor) -> Tensor:
    import torchode

    flat = z.flatten(1)  # its states are [batch, features]
    term = torchode.ODETerm(lambda t, z: field(z))
    solver = torchode.AutoDiffAdjoint(torchode.Heun(term=term), torchode.FixedStepController())
    n = len(flat)
    problem = torchode.InitialValueProblem(y0=flat, t_start=torch.zeros(n), t_end=torch.ones(n))
    solution = solver.solve(problem, dt0=torch.full((n,), 1 / N_STEPS))
    return solution.ys[:, -1].view_as(z)


def evaluations(z: Tensor) -> Tensor:
    for _ in range(2 * N_STEPS):
        z = field(z)
    return z


def seconds(run: Callable[[Tensor], Tensor], z: Tensor, clock: Callable[[], float]) -> float:
    started = clock()
    run(z)
    return clock() - started


def checked_end(name: str, run: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    field.n_calls = 0
    end = run(z)
    if field.n_calls != 2 * N_STEPS:
        raise RuntimeError(f"{name} made {field.n_calls} evaluations instead of {2 * N_STEPS}")
    return end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write rows as JSON Lines")
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu needs --threads 1")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu counts the calling thread only: add --threads 1")
    clock = time.perf_counter if arguments.clock == "wall" else time.thread_time
    torch.set_num_threads(arguments.threads)

    runs: dict[str, Callable[[Tensor], Tensor]] = {"ours": ours, "ours-allocating": ours_allocating}
    absent = {}
    for name, run in (("torchdiffeq", with_torchdiffeq), ("torchode", with_torchode)):
        try:
            __import__(name)
            runs[name] = run
        except ImportError as error:
            absent[name] = str(error)
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ends = {name: checked_end(name, run, z) for name, run in runs.items()}
        for name, end in ends.items():
            torch.testing.assert_close(end, ends["ours"], rtol=1e-4, atol=1e-5, msg=f"{name} disagrees with ours")
        overheads: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(arguments.repeats):
            network = seconds(evaluations, z, clock)
            for name, run in runs.items():
                overheads[name].append(seconds(run, z, clock) - network)

    writer = RowWriter("solver", z.device)
    note = f"state {list(SHAPE)} float32; {arguments.clock} time beyond the evaluations"
    for name, values in overheads.items():
        writer.add("solver-heun25-linear", name, "overhead", "ms", [value * 1e3 for value in values], note)
    writer.add_speedups("solver-heun25-linear", overheads, note)
    for name, reason in absent.items():
        writer.add("solver-heun25-linear", name, "overhead", "ms", [], f"not installed: {reason}")
    print(writer.table())
    if arguments.out is not None:
        writer.write(arguments.out)


if __name__ == "__main__":
    main()
