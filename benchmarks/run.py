"""Checking and measuring the chosen jobs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from benchmarks.context import Context
from benchmarks.limits import measure_limits
from benchmarks.registry import Job, jobs, verdicts
from benchmarks.rows import OURS, RowWriter, machine_folder
from benchmarks.timing import CLOCKS
from benchmarks.verify import failing_tests

# Variables that hold the processor, or a choice that it makes, back; rows name them, and none is kept as the machine's.
HOLDING_BACK = ("MSF_CPU_LEVEL", "MSF_PRECISION", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MSF_KERNELS_BACKEND")


def chosen_jobs(options: argparse.Namespace) -> list[Job]:
    """Return the jobs of the wanted suites and names.

    Raises:
        SystemExit: A name that fits no job; exit code 2.
    """
    found = list(jobs(options.suite))
    if not options.only:
        return found
    unknown = [name for name in options.only if not any(fnmatchcase(job.name, name) for job in found)]
    if unknown:
        _stop(f"no job is called {', '.join(unknown)}; python -m benchmarks list prints them")
    return [job for job in found if any(fnmatchcase(job.name, name) for name in options.only)]


def run(options: argparse.Namespace) -> int:
    """Check and measure; exit code 1 if a test failed or variants disagreed, 2 for bad arguments."""
    context = _context(options)
    if options.rounds is not None and options.rounds < 1:
        _stop(f"--rounds must be >= 1; got {options.rounds}")
    if options.clock == "cpu" and torch.get_num_threads() != 1:
        _stop("--clock cpu needs --threads 1: the times of threads add up")
    if options.out is not None and options.save:
        _stop("--out and --save cannot both be given")
    if options.save and (options.only or options.quick):
        _stop("--save keeps whole suites at full size: it cannot go with --only or --quick")
    held_back = [name for name in HOLDING_BACK if name in os.environ]
    if options.save and held_back:
        _stop(f"--save keeps what this machine does by itself: it cannot go with {', '.join(held_back)}")
    context.rounds, context.full, context.clock = options.rounds, options.full, CLOCKS[options.clock]
    found = chosen_jobs(options)
    n_failed, written = 0, []
    for suite in dict.fromkeys(job.suite for job in found):
        its = [job for job in found if job.suite == suite]
        first = len(context.writer.rows)
        n_failed += measure_suite(its, context, verify=not options.no_verify)
        written.append((suite, first, len(context.writer.rows)))
    print("\n".join(verdicts(found, context.writer)))
    if options.out is not None:
        context.writer.write(options.out)
    if options.save:
        folder = machine_folder(context.device)
        folder.mkdir(parents=True, exist_ok=True)
        for suite, first, end in written:
            context.writer.write(folder / f"{suite}.jsonl", context.writer.rows[first:end])
        print(f"written to {folder}")
    return 1 if n_failed else 0


def measure_suite(found: Sequence[Job], context: Context, *, verify: bool) -> int:
    """Measure the machine's limits and the jobs of one suite, and return how many jobs failed."""
    writer = context.writer
    writer.suite = found[0].suite
    failing = failing_tests([test for job in found for test in job.tests]) if verify else {}
    first = len(writer.rows)
    context.limits = measure_limits(context)
    n_failed = 0
    for job in found:
        reasons = [f"{test}: {failing[test]}" for test in job.tests if test in failing]
        try:
            if not reasons:
                job.measure(context)
        except AssertionError as error:
            reasons = [str(error)]
        if reasons:
            n_failed += 1
            writer.add(job.name, OURS, "time", "us", [], "not timed, because a check failed: " + "; ".join(reasons))
        print(writer.table(first), flush=True)
        first = len(writer.rows)
    return n_failed


def verify_only(options: argparse.Namespace) -> int:
    """Run the jobs' tests and compare their variants without timing; exit code 1 if anything fails."""
    context = _context(options)
    found = chosen_jobs(options)
    failing = failing_tests([test for job in found for test in job.tests])
    n_failed = 0
    for job in found:
        reasons = [f"{test}: {failing[test]}" for test in job.tests if test in failing]
        try:
            job.check(context)
        except AssertionError as error:
            reasons.append(str(error))
        n_failed += bool(reasons)
        print(f"{job.suite:12} {job.name:40} {'FAILED ' + '; '.join(reasons) if reasons else 'passed'}", flush=True)
    return 1 if n_failed else 0


def _context(options: argparse.Namespace) -> Context:
    wanted = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        _stop("--device cuda: there is no CUDA device on this machine")
    threads = options.threads if options.threads is not None else os.cpu_count() or 1
    if threads < 1:
        _stop(f"--threads must be >= 1; got {threads}")
    torch.set_num_threads(threads)
    device = torch.device(wanted)
    remarks = ["quick run: small sizes, no measurement"] * options.quick
    remarks += [f"{name}={os.environ[name]}" for name in HOLDING_BACK if name in os.environ]
    return Context(device, RowWriter("", device, "; ".join(remarks)), quick=options.quick)


def _stop(message: str) -> None:
    print(f"benchmarks: {message}", file=sys.stderr)
    raise SystemExit(2)
