"""The first minutes on a GPU, in one command each: `make gpu-first`, then `make gpu-second`.

    python -m benchmarks.gpu_run first|second [--dry-run] [--out FOLDER] [--minutes M] [--steps STEP ...]

Steps run one after another, each in a process of its own with a limit of its own, so that one that hangs costs its own
time only. Nothing is installed or downloaded; a step whose packages are missing says so. What a step has measured lies
in FOLDER as soon as it is known, and so does every step's line in `gpu-<plan>.jsonl`. Exit code 0: all steps ended well
or could not run here; 1: one failed or ran out of time; 2: bad arguments, or no GPU.

With `--dry-run` the same steps run on a CPU with tiny sizes: a test, not a measurement.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from benchmarks.gpu_check import FAILED, NOT_APPLICABLE, PASSED, TIMED_OUT
from benchmarks.rows import RESULTS, ROOT, load_rows
from msf_kernels.environment import describe_machine, versions

# Of the whole: what is left of it is what a step may take at most.
MINUTES = {"first": 8.0, "second": 9.0}
# In a dry run the work is another, and so is the machine.
DRY_LIMIT = 600.0
DRY_MINUTES = 60.0
_NETWORK_OPERATORS = ("prepared", "attention_block", "group_norm_silu", "spatial_attention")
_CHECKED_OPERATORS = (
    "attention_block", "class_distance", "group_norm_silu", "philox_normal", "prepared_convolution", "rk_combine",
    "spatial_attention",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One process.

    Args:
        name: Of the step; its files are called so.
        module: What is run, with `python -m`.
        arguments: Its arguments; `{out}` is the folder, `{rows}` the step's file of rows, `{arch}` the GPU's
            architecture and `{cores}` the number of processor cores.
        dry: Its arguments in a dry run.
        limit: Seconds that it may take.
        needs: Packages without which it cannot run.
        environment: Variables to set.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    dry: tuple[str, ...]
    limit: float
    needs: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def _part(name: str, part: str, limit: float, *options: str, needs: tuple[str, ...] = ()) -> Step:
    """Return a part of the benchmark as a step."""
    arguments = ("--part", part, "--rows", "{rows}")
    dry = (*arguments, "--sizes", "2", "--dry-run")
    return Step(name, "benchmarks.gpu_bench", (*arguments, *options), dry, limit, needs)


def _check(limit: float, *steps: str) -> Step:
    """Return steps of the check as one."""
    common = ("--name", "-".join(steps), "--out", "{out}", "--steps", *steps, "--seeds", "0", "--op")
    return Step(
        "-".join(steps),
        "benchmarks.gpu_check",
        (*common, *_CHECKED_OPERATORS),
        (*common, "philox_normal", "--device", "cpu", "--case", "tiny", "--jobs", "1"),
        limit,
    )


def _suite(name: str, suite: str, job: str, limit: float, *needs: str) -> Step:
    common = ("run", "--suite", suite, "--only", job, "--no-verify", "--out", "{rows}")
    return Step(name, "benchmarks", common, (*common, "--quick", "--device", "cpu"), limit, needs)


_SIZES = ("--sizes", "64", "256", "512")
# The limits of the first plan add up to its minutes.
PLANS: dict[str, tuple[Step, ...]] = {
    "first": (
        _part("limits", "limits", 20),
        _check(70, "build"),
        _check(70, "selftest", "capture"),
        # Into the compiler's cache, by all cores at once, for the steps that follow.
        Step(
            "compile",
            "msf_kernels.aot",
            ("--op", *_NETWORK_OPERATORS, "--arch", "{arch}", "--jobs", "{cores}", "--json", "{out}/compile.json"),
            ("--op", "philox_normal", "--arch", "sm_90", "--jobs", "1", "--json", "{out}/compile.json"),
            70,
            ("triton",),
        ),
        _part("captured", "captured", 25),
        _part("sweep", "sweep", 45, *_SIZES),
        Step(
            "tune",
            "msf_kernels.tune",
            ("--op", "conv3x3", "attention_block", "spatial_attention", "--rounds", "5"),
            ("--op", "conv3x3", "--rounds", "1", "--dry-run"),
            60,
        ),
        # By the table, and with every kernel in its fastest configuration.
        replace(_part("sweep-tuned", "sweep", 45, *_SIZES), environment={"MSF_KERNELS_TRY_CONFIGURATIONS": "1"}),
        _part("compiled", "compiled", 55, "--sizes", "256", "--mode", "reduce-overhead"),
        _part("profile", "profile", 20),
    ),
    "second": (
        _check(80, "build"),
        _part("energy", "sweep", 50, "--sizes", "256", needs=("pynvml",)),
        _part("max-autotune", "compiled", 180, "--sizes", "256"),
        _suite("training", "train", "train-latent-*", 50, "accelerate", "torchmetrics"),
        _suite("latent-s1024", "end-to-end", "latent-classify-1-picture-s1024", 80, "diffusers"),
        _check(100, "sanitizer"),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: str
    status: str
    seconds: float
    limit: float
    note: str
    command: str


def run_step(step: Step, out: Path, deadline: float, *, is_dry: bool) -> Outcome:
    """Run a step within its limit and what is left of the whole."""
    missing = [name for name in step.needs if importlib.util.find_spec(name) is None]
    if missing:
        return Outcome(step.name, NOT_APPLICABLE, 0.0, step.limit, f"needs {', '.join(missing)}", "")
    major, minor = (9, 0) if is_dry else torch.cuda.get_device_capability()
    places = {"out": out, "rows": out / f"{step.name}.jsonl", "arch": f"sm_{major}{minor}", "cores": os.cpu_count()}
    arguments = [text.format(**places) for text in (step.dry if is_dry else step.arguments)]
    command = [sys.executable, "-m", step.module, *arguments]
    started = time.monotonic()
    seconds = min(DRY_LIMIT if is_dry else step.limit, deadline - started)
    text = " ".join(command)
    if seconds <= 0:
        return Outcome(step.name, TIMED_OUT, 0.0, step.limit, "no time was left for it", text)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **step.environment}
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        note = f"its {seconds:.0f} s were up; what it had measured is kept"
        return Outcome(step.name, TIMED_OUT, time.monotonic() - started, step.limit, note, text)
    status, note = (PASSED, "") if code == 0 else (FAILED, f"exit code {code}")
    return Outcome(step.name, status, time.monotonic() - started, step.limit, note, text)


def summary(out: Path, outcomes: Sequence[Outcome]) -> str:
    """Return what came of the steps, and the times that they measured."""
    lines = [
        f"{each.step:14} {each.status:15} {each.seconds:6.1f} of {each.limit:3.0f} s  {each.note}" for each in outcomes
    ]
    for each in outcomes:
        path = out / f"{each.step}.jsonl"
        for row in load_rows(path) if path.exists() else []:
            if row.median is not None and not row.metric.startswith("self_time"):
                what = f"{each.step:14} {row.job:24} {row.variant:16} {row.metric:24}"
                lines.append(f"{what} {row.median:12.4g} {row.unit}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    known = [step.name for step in PLANS[options.plan]]
    unknown = sorted(set(options.steps or known) - set(known))
    if unknown:
        print(f"gpu-run: --steps must be among {', '.join(known)}; got {', '.join(unknown)}", file=sys.stderr)
        return 2
    if not options.dry_run and not torch.cuda.is_available():
        print("gpu-run: there is no CUDA device on this machine, so nothing was run", file=sys.stderr)
        return 2
    usual = DRY_MINUTES if options.dry_run else MINUTES[options.plan]
    deadline = time.monotonic() + 60 * (usual if options.minutes is None else options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cpu" if options.dry_run else "cuda")
    machine = {"machine": describe_machine(device), "versions": versions()}
    outcomes = []
    with (options.out / f"gpu-{options.plan}.jsonl").open("w") as lines:
        print(json.dumps(machine), file=lines, flush=True)
        for step in PLANS[options.plan]:
            if options.steps and step.name not in options.steps:
                continue
            print(f"--- {step.name}", flush=True)
            outcomes.append(run_step(step, options.out, deadline, is_dry=options.dry_run))
            print(json.dumps(asdict(outcomes[-1])), file=lines, flush=True)
    print(summary(options.out, outcomes))
    return int(any(each.status in (FAILED, TIMED_OUT) for each in outcomes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run", description="The first minutes on a GPU.")
    parser.add_argument("plan", choices=PLANS, help="first: is it right, how fast, what to choose; second: the rest")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu", metavar="FOLDER")
    parser.add_argument("--minutes", type=float, metavar="M", help="time for everything; default 8, and 9 for second")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only these")
    parser.add_argument("--dry-run", action="store_true", help="the same steps on the CPU with tiny sizes")
    return parser


if __name__ == "__main__":
    sys.exit(main())
