"""Native operators against what one would write in PyTorch, and what a call costs before it does anything; on a CPU.

    python -m benchmarks.operators_cpu [--out FILE] [--threads N] [--rounds N] [--only JOB ...] [--clock cpu]

Variants of a job run in turn (A B A B ...) in one process on the same tensors, and must agree first. `ours` is the
native backend. The boundary of a call is the time of a public call on a few numbers less that of the raw PyTorch
operation on the same numbers. On a machine with other work use `--clock cpu --threads 1`: time of the processor, not of
the wall.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import msf_kernels
from benchmarks.rows import OURS, RowWriter
from benchmarks.timing import Plan, interleaved

SUITE = "ops"
BACKEND = "native"
CPU = torch.device("cpu")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Job:
    """What is timed.

    Args:
        name: Of the job.
        operator: Operator that `ours` calls.
        variants: Call per variant, `ours` first.
        note: Sizes.
        goals: Wanted speed-up over a peer.
        is_boundary: Whether the difference to the peers is what is measured, not the ratio.
        agree: Whether the variants must return the same numbers up to rounding.
    """

    name: str
    operator: str
    variants: Mapping[str, Callable[[], Tensor]]
    note: str
    goals: Mapping[str, float] = field(default_factory=dict)
    is_boundary: bool = False
    agree: bool = True


def jobs() -> Iterator[Job]:
    yield _group_norm(torch.float32)
    yield _group_norm(torch.bfloat16)
    yield _class_distance()
    yield _rk_combine()
    yield _philox_normal()
    yield from _boundaries()


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _group_norm(dtype: torch.dtype) -> Job:
    x = _normal(8, 128, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
    weight, bias = _normal(128, dtype=dtype), _normal(128, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    return Job(
        f"group-norm-silu-{name}",
        "group_norm_silu",
        {
            OURS: lambda: msf_kernels.group_norm_silu(x, 32, weight, bias, backend=BACKEND),
            "eager": lambda: functional.silu(functional.group_norm(x, 32, weight, bias)),
        },
        note=f"8x128x32x32 channels-last {name}, 32 groups",
        goals={"eager": 1.5},
    )


def _class_distance() -> Job:
    semantic, codes = _normal(64, 3, 32, 32), _normal(8, 3)
    palette = [code.tolist() for code in codes]

    def per_class_loop() -> Tensor:
        """Distances class by class, each colour made a tensor where it is needed: what the published code does."""
        distances = []
        for colour in palette:
            code = torch.tensor(colour, dtype=semantic.dtype).view(1, -1, 1, 1)
            distances.append(torch.norm(semantic - code, dim=1).mean(dim=(1, 2)))
        return torch.stack(distances, dim=1)

    return Job(
        "class-distance",
        "class_distance",
        {
            OURS: lambda: msf_kernels.class_distance(semantic, codes, backend=BACKEND)[0],
            "authors": per_class_loop,
        },
        note="64 maps of 3x32x32, 8 classes, float32; ours also counts votes",
        goals={"authors": 10.0},
    )


def _rk_combine() -> Job:
    state, slopes = _normal(64, 8, 32, 32), [_normal(64, 8, 32, 32), _normal(64, 8, 32, 32).flip(0)]
    dt = 0.04
    return Job(
        "rk-combine-heun",
        "rk_combine",
        {
            OURS: lambda: msf_kernels.rk_combine(state, slopes, (0.5, 0.5), dt, backend=BACKEND),
            "eager": lambda: state + dt * (0.5 * slopes[0] + 0.5 * slopes[1]),
        },
        note="64x8x32x32 float32, two slopes",
        goals={"eager": 1.5},
    )


def _philox_normal() -> Job:
    index = torch.arange(64)
    return Job(
        "philox-normal",
        "philox_normal",
        {
            OURS: lambda: msf_kernels.philox_normal(index, (3, 32, 32), 0, backend=BACKEND),
            "torch.randn": lambda: torch.randn(64, 3, 32, 32),
        },
        note="64 samples of 3x32x32 float32",
        agree=False,
    )


def _boundaries() -> Iterator[Job]:
    state, slope = _normal(4), _normal(4)
    yield Job(
        "boundary-rk-combine",
        "rk_combine",
        {
            OURS: lambda: msf_kernels.rk_combine(state, (slope,), (1.0,), 0.5, backend=BACKEND),
            "torch.add": lambda: torch.add(state, slope, alpha=0.5),
        },
        note="4 numbers, one slope",
        is_boundary=True,
    )
    x, weight, bias = _normal(1, 4, 2, 2), _normal(4), _normal(4)
    yield Job(
        "boundary-group-norm",
        "group_norm_silu",
        {
            OURS: lambda: msf_kernels.group_norm_silu(x, 2, weight, bias, silu=False, backend=BACKEND),
            "torch.group_norm": lambda: torch.group_norm(x, 2, weight, bias),
        },
        note="1x4x2x2, without SiLU",
        is_boundary=True,
    )
    index = torch.arange(1)
    yield Job(
        "boundary-philox-normal",
        "philox_normal",
        {
            OURS: lambda: msf_kernels.philox_normal(index, (4,), 0, backend=BACKEND),
            "torch.randn": lambda: torch.randn(1, 4),
        },
        note="4 numbers",
        is_boundary=True,
        agree=False,
    )


def measure(job: Job, plan: Plan, writer: RowWriter) -> None:
    """Time a job's variants and add their rows, or one row that says why ours cannot run."""
    reasons = msf_kernels.backends()[job.operator].get(BACKEND, [f"{job.operator} has no {BACKEND} backend"])
    if reasons:
        writer.add(job.name, OURS, "time", "us", [], "; ".join(reasons))
        return
    with torch.inference_mode():
        if job.agree:
            _require_agreement(job)
        seconds = interleaved(job.variants, plan, CPU)
    metric = "time" if plan.clock is time.perf_counter else "processor time"
    for variant, samples in seconds.items():
        writer.add(job.name, variant, metric, "us", [1e6 * sample for sample in samples], job.note)
    if job.is_boundary:
        for peer in [name for name in seconds if name != OURS]:
            extra = [1e6 * (ours - raw) for ours, raw in zip(seconds[OURS], seconds[peer], strict=True)]
            writer.add(job.name, OURS, f"boundary_over:{peer}", "us", extra, job.note)
    else:
        writer.add_speedups(job.name, seconds, job.note)


def verdicts(found: Sequence[Job], writer: RowWriter) -> list[str]:
    """Return one line per goal: met or missed, by the median."""
    lines = []
    for job in found:
        for peer, goal in job.goals.items():
            wanted = (job.name, f"speedup_vs:{peer}")
            medians = [row.median for row in writer.rows if (row.job, row.metric) == wanted and row.median is not None]
            state = "not measured" if not medians else "met" if medians[0] >= goal else "MISSED"
            lines.append(f"goal {job.name}: at least {goal}x {peer}: {state}")
    return lines


def _require_agreement(job: Job) -> None:
    results = {name: call() for name, call in job.variants.items()}
    ours = results[OURS]
    tolerance = 3e-2 if ours.dtype == torch.bfloat16 else 1e-4
    for name, result in results.items():
        torch.testing.assert_close(result, ours, rtol=tolerance, atol=tolerance, msg=f"{job.name}: {name} disagrees")


def main(arguments: Sequence[str] | None = None) -> int:
    names = [job.name for job in jobs()]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators_cpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE", help="write rows as JSON Lines")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--rounds", type=int, default=Plan.n_rounds, metavar="N", help="samples per variant")
    parser.add_argument("--only", choices=names, nargs="+", default=names, metavar="JOB")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: needs --threads 1; default wall")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu needs --threads 1: the times of threads add up")
    if options.rounds < 1 or options.threads < 1:
        parser.error(f"--rounds and --threads must be >= 1; got {options.rounds} and {options.threads}")
    torch.set_num_threads(options.threads)

    writer = RowWriter(SUITE, CPU)
    chosen = [job for job in jobs() if job.name in options.only]
    for job in chosen:
        measure(job, Plan(n_rounds=options.rounds, clock=CLOCKS[options.clock]), writer)
    print(writer.table())
    print("\n".join(verdicts(chosen, writer)))
    if options.out is not None:
        writer.write(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
