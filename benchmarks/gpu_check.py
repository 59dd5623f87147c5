"""Everything that needs a GPU, in one command: `make gpu-check`, or `python -m benchmarks.gpu_check`.

Builds the native extension in place for this GPU, then, in parallel processes: the self-test of every operator and
backend (plain, compiled as one graph, replayed as a CUDA graph), the tests marked `gpu`, and a small self-test under
compute-sanitizer where that exists. Nothing is installed or downloaded. Writes `gpu-check-<gpu>.json`, and what became
of each job to `gpu-check-<gpu>.jsonl` when it ends. Exit code 0:
everything passed; 1: something failed or ran out of time; 2: bad arguments, or no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import ROOT, commit
from msf_kernels import backends, rk_combine
from msf_kernels.environment import describe_machine, versions
from msf_kernels.testing.cases import fixed_cases
from msf_kernels.testing.conformance import OWN_BACKENDS

PASSED, FAILED, TIMED_OUT, NOT_APPLICABLE = "passed", "failed", "timed out", "not applicable"
FEW_CASES = ("prime", "channels-last", "network map")
NO_TESTS_COLLECTED = 5
SANITIZER_FOUND_ERRORS = 86


@dataclass(frozen=True)
class Job:
    """One process.

    Args:
        step: Which part of the check.
        subject: Operator, or what else it is about.
        command: Arguments of the process; empty: the step cannot run here.
        note: Why it cannot run here.
        environment: Variables to set.
        report: Where a self-test writes its rows.
    """

    step: str
    subject: str
    command: Sequence[str] = ()
    note: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    report: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    step: str
    subject: str
    status: str
    seconds: float
    note: str = ""
    command: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


def carried_library(device: torch.device) -> str | None:
    """Return why nothing has to be built: a library with kernels for this GPU was brought along."""
    if device.type != "cuda" or not torch.cuda.is_available() or backends()["rk_combine"]["native"]:
        return None
    x = torch.ones(8, device=device)
    try:
        rk_combine(x, [x], [1.0], 1.0, backend="native")
        torch.cuda.synchronize()
    except RuntimeError:  # made for another GPU
        return None
    return "the library that is here has kernels for this GPU"


def build_job(device: torch.device) -> Job:
    carried = carried_library(device)
    if carried is not None:
        return Job("build", "native", note=carried)
    if device.type == "cuda" and shutil.which("nvcc") is None:
        return Job("build", "native", note="nvcc is not on PATH")
    environment = {"MSF_BUILD_NATIVE": "1"}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        environment["MSF_CUDA_ARCHS"] = f"{major}{minor}"
    return Job("build", "native", [sys.executable, "setup.py", "build_ext", "--inplace"], environment=environment)


def selftest_jobs(
    operators: Sequence[str], device: torch.device, n_seeds: int, folder: Path, cases: Sequence[str] = ()
) -> Iterator[Job]:
    """Plain runs of all cases, or of those named; compiled and captured runs of a few, in dtypes that networks use."""
    for operator in operators:
        few = ["--seeds", "0", "--case", *(case.label for case in fixed_cases(operator) if case.label in FEW_CASES)]
        common = ["-m", "msf_kernels.selftest", "--device", device.type, "--op", operator]
        table = backends()[operator]
        # On a GPU all of ours must serve, so they are named; libraries are deterministic only where they say so.
        own = [name for name in OWN_BACKENDS if name in table and (device.type == "cuda" or not table[name])]
        runs = {
            "selftest": ["--seeds", str(n_seeds), *(["--case", *cases] if cases else [])],
            "compile": ["--run", "compiled", "--dtype", "bfloat16", *few],
            "capture": ["--run", "captured", "--dtype", "float32", "bfloat16", "--backend", *own, *few],
        }
        for step, flags in runs.items():
            if step == "capture" and device.type != "cuda":
                yield Job(step, operator, note="CUDA graphs need a GPU")
                continue
            report = folder / f"{step}-{operator}.json"
            yield Job(step, operator, [sys.executable, *common, *flags, "--json", str(report)], report=report)


def pytest_job(device: torch.device) -> Job:
    if device.type != "cuda":
        return Job("pytest", "gpu", note="the tests marked gpu need a GPU")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests"]
    return Job("pytest", "gpu", command)


def sanitizer_job(device: torch.device) -> Job:
    if device.type != "cuda":
        return Job("sanitizer", "memcheck", note="compute-sanitizer needs a GPU")
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return Job("sanitizer", "memcheck", note="compute-sanitizer is not on PATH")
    flags = ["--tool", "memcheck", "--error-exitcode", str(SANITIZER_FOUND_ERRORS), "--print-limit", "10"]
    small = ["--backend", "native", "triton", "--dtype", "float32", "bfloat16", "--case", "prime"]
    test = [sys.executable, "-m", "msf_kernels.selftest", "--device", "cuda", "--seeds", "0", *small]
    # Torch's caching allocator would hide accesses beyond a tensor inside its own block.
    return Job("sanitizer", "memcheck", [tool, *flags, *test], environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def run_job(job: Job, deadline: float) -> Outcome:
    """Run a process until it ends or the time is up."""
    if not job.command:
        return Outcome(job.step, job.subject, NOT_APPLICABLE, 0.0, job.note)
    started = time.monotonic()
    text = " ".join(job.command)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | job.environment
    try:
        done = subprocess.run(
            job.command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=max(deadline - started, 0.1),
        )
    except subprocess.TimeoutExpired:
        seconds = time.monotonic() - started
        return Outcome(job.step, job.subject, TIMED_OUT, seconds, "the time of the whole check was up", text)
    status, note = _judge(job, done.returncode, done.stdout)
    rows: list[dict[str, Any]] = []
    if job.report is not None and job.report.exists():
        rows = [{"step": job.step, **row} for row in json.loads(job.report.read_text())["rows"]]
    return Outcome(job.step, job.subject, status, time.monotonic() - started, note, text, rows)


def _judge(job: Job, code: int, output: str) -> tuple[str, str]:
    tail = "\n".join(output.strip().splitlines()[-15:])
    if job.step == "pytest" and code == NO_TESTS_COLLECTED:
        return NOT_APPLICABLE, "there are no tests marked gpu"
    if job.step == "sanitizer" and code and "Device not supported" in output:
        return NOT_APPLICABLE, "compute-sanitizer does not support this device"
    if code:
        return FAILED, f"exit code {code}\n{tail}"
    counts = re.findall(r"^\d+ passed.*$", output, re.MULTILINE)
    return PASSED, counts[-1] if counts else ""


def failures(outcomes: Sequence[Outcome]) -> list[str]:
    """Return one line for each step or row that did not pass."""
    found = []
    for outcome in outcomes:
        bad = [row for row in outcome.rows if row["verdict"] == "fail"]
        for row in bad:
            name = " ".join(row[key] for key in ("step", "operator", "backend", "dtype", "case", "output"))
            found.append(f"{name}: {row['note']}")
        if outcome.status in (FAILED, TIMED_OUT) and not bad:
            found.append(f"{outcome.step} {outcome.subject} {outcome.status}: {outcome.note}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("gpu-check: there is no CUDA device on this machine, so nothing was checked", file=sys.stderr)
        return 2
    started = time.monotonic()
    deadline = started + 60 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(device)
    name = str(machine.get("gpu", "cpu"))
    path = options.out / f"{options.name}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    log = path.with_suffix(".jsonl")
    log.write_text("")
    with tempfile.TemporaryDirectory() as folder:
        # The rest runs what the build makes.
        outcomes = [_report(run_job(build_job(device), deadline), log)] if "build" in options.steps else []
        jobs = [sanitizer_job(device), pytest_job(device)]
        jobs += selftest_jobs(options.op, device, options.seeds, Path(folder), options.case)
        chosen = [job for job in jobs if job.step in options.steps]
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes += pool.map(lambda job: _report(run_job(job, deadline), log), chosen)
    found = failures(outcomes)
    report = {
        "format": 1,
        "gpu": name,
        "machine": machine,
        "versions": versions(),
        "commit": commit(),
        "seconds": round(time.monotonic() - started, 1),
        "passed": not found,
        "failures": found,
        "steps": [{k: v for k, v in asdict(outcome).items() if k != "rows"} for outcome in outcomes],
        "rows": [row for outcome in outcomes for row in outcome.rows],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
    for line in found:
        print(f"FAILED {line}")
    print(f"{'passed' if not found else f'{len(found)} failures'} in {report['seconds']} s; written to {path}")
    return 1 if found else 0


def _report(outcome: Outcome, log: Path) -> Outcome:
    """Print and write what became of a job at once: the report comes at the end, if there is one."""
    with log.open("a") as lines:
        lines.write(json.dumps(asdict(outcome)) + "\n")
    first = outcome.note.partition("\n")[0]
    print(f"{outcome.step:10} {outcome.subject:18} {outcome.status:15} {outcome.seconds:6.1f} s  {first}", flush=True)
    return outcome


def _parser() -> argparse.ArgumentParser:
    steps = ["build", "selftest", "compile", "capture", "pytest", "sanitizer"]
    operators = sorted(backends())
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description="Everything that needs a GPU.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--name", default="gpu-check", help="start of the report's name; default gpu-check")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: what can be checked without")
    parser.add_argument("--steps", choices=steps, nargs="+", default=steps, metavar="STEP", help=", ".join(steps))
    parser.add_argument("--op", choices=operators, nargs="+", default=operators, metavar="NAME", help="default all")
    parser.add_argument("--case", nargs="+", default=[], metavar="LABEL", help="of the plain self-test; default all")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="random cases per operator; default 10")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything; default 8")
    parser.add_argument("--jobs", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)), metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
