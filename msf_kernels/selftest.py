"""Every operator and backend of this machine against the definition: error, bound, verdict.

    python -m msf_kernels.selftest [--op NAME ...] [--backend NAME ...] [--dtype NAME ...] [--case LABEL ...]
                                   [--seeds N] [--run plain|compiled|captured] [--device cpu|cuda] [--json FILE]

Inputs are rounded to the dtype under test; the oracle is the definition in float64 on the same inputs; outputs start as
NaN. An output or gradient may be at most twice as wrong as the plain formula in the same dtype plus one rounding unit,
in maximum and in root mean square; backends that are other libraries' kernels: twice that. `--run compiled` sends every
call through `torch.compile` as one graph; `--run captured` replays it as a CUDA graph, which must repeat a plain run
bit for bit. Exit code 0: everything passed; 1: something failed; 2: bad arguments.

On a machine without a GPU, `TRITON_INTERPRET=1` runs the Triton kernels in their interpreter (float32 and float16).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from msf_kernels.backend import backends
from msf_kernels.environment import describe_machine, versions
from msf_kernels.testing.case import OperatorCase
from msf_kernels.testing.cases import fixed_cases, random_case
from msf_kernels.testing.conformance import FAIL, PASS, REFUSED, Verdict, check, expectations
from msf_kernels.testing.execution import run_captured, run_compiled, run_poisoned

RUNS = {"plain": run_poisoned, "compiled": run_compiled, "captured": run_captured}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_WIDTHS = "{:<22}{:<12}{:<10}{:<21}{:>10}{:>10}{:>10}{:>10}  {}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the self-test and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    available = backends()
    _check_names(parser, "--op", options.op, available)
    _check_names(parser, "--backend", options.backend, {name for table in available.values() for name in table})
    operators = options.op or sorted(available)
    _check_names(parser, "--case", options.case, {case.label for name in operators for case in fixed_cases(name)})
    if options.seeds < 0:
        parser.error(f"--seeds must be >= 0; got {options.seeds}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device must be cpu here; got cuda, but there is no CUDA device")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if options.run == "captured" and device.type != "cuda":
        parser.error("--run captured needs --device cuda")
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json must be in an existing folder; got {options.json}")

    available = backends(device.type)
    verdicts: list[Verdict] = []
    print(_WIDTHS.format("operator", "backend", "dtype", "case", "max error", "bound", "RMS error", "bound", "verdict"))
    for operator in operators:
        reasons = available[operator]
        wanted = [name for name in reasons if not options.backend or name in options.backend]
        serving = [name for name in wanted if not reasons[name]]
        found = list(_run_operator(operator, serving, options, device))
        found += [_nothing_served(operator, name) for name in serving if _has_only_refusals(found, name)]
        if options.backend:
            found += [_failure(operator, name, "; ".join(reasons[name])) for name in wanted if reasons[name]]
        _print_rows(found)
        verdicts += found
    unavailable = {
        operator: {name: texts for name, texts in available[operator].items() if texts} for operator in operators
    }
    has_passed = _print_summary(verdicts, unavailable)
    if options.json is not None:
        report = {
            "format": 1,
            "device": str(device),
            "machine": describe_machine(device),
            "versions": versions(),
            "run": options.run,
            "seeds": options.seeds,
            "passed": has_passed,
            "unavailable": unavailable,
            "rows": [asdict(verdict) for verdict in verdicts],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if has_passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m msf_kernels.selftest", description="Every operator and backend here against the definition."
    )
    several = partial(parser.add_argument, nargs="+", action="extend", default=[], metavar="NAME")
    several("--op", help="operators to test; default all")
    several("--backend", help="backends to test, which must then serve; default all that can")
    several("--case", help="fixed cases to test; default all")
    parser.add_argument("--dtype", choices=DTYPES, help="dtypes to test; default all", nargs="+", default=[*DTYPES])
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="random cases per operator; default 3")
    parser.add_argument("--run", choices=RUNS, default="plain", help="how to run a call; default plain")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default cuda where there is one")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there")
    return parser


def _check_names(
    parser: argparse.ArgumentParser,
    flag: str,
    names: Sequence[str],
    known: Collection[str],
) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"{flag} must be one of {', '.join(sorted(known))}; got {', '.join(unknown)}")


def _run_operator(
    operator: str, serving: Sequence[str], options: argparse.Namespace, device: torch.device
) -> Iterator[Verdict]:
    for case in _cases(operator, options):
        for dtype in [DTYPES[name] for name in options.dtype] if case.has_dtype else [torch.int64]:
            expected = expectations(case, dtype, device)
            for backend in serving:
                yield from check(case, backend, dtype, device, expected, RUNS[options.run])


def _cases(operator: str, options: argparse.Namespace) -> list[OperatorCase]:
    fixed = [case for case in fixed_cases(operator) if not options.case or case.label in options.case]
    return fixed + [random_case(operator, seed) for seed in range(options.seeds)]


def _has_only_refusals(verdicts: Sequence[Verdict], backend: str) -> bool:
    kinds = {verdict.verdict for verdict in verdicts if verdict.backend == backend}
    return kinds == {REFUSED}


def _nothing_served(operator: str, backend: str) -> Verdict:
    return _failure(operator, backend, "can serve on this machine, but refused every case")


def _failure(operator: str, backend: str, note: str) -> Verdict:
    return Verdict(operator, backend, "", "", "", FAIL, note)


def _print_rows(verdicts: Sequence[Verdict]) -> None:
    """Print the worst output of every call; refused calls share one row, and so do random ones that passed."""
    calls: dict[tuple[str, str, str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        is_shared = verdict.verdict == REFUSED or (verdict.verdict == PASS and verdict.case.startswith("random "))
        label = verdict.verdict if is_shared else verdict.case
        calls[verdict.operator, verdict.backend, verdict.dtype, label].append(verdict)
    for (operator, backend, dtype, label), found in calls.items():
        worst = max(found, key=lambda verdict: (verdict.verdict == FAIL, verdict.ratio))
        n_cases = len({verdict.case for verdict in found})
        label = {PASS: f"{n_cases} random", REFUSED: f"{n_cases} cases"}.get(label, label)
        numbers = (worst.max_error, worst.max_bound, worst.rms_error, worst.rms_bound)
        cells = ["-" if number is None else f"{number:.2e}" for number in numbers]
        text = worst.verdict.upper() if worst.verdict == FAIL else worst.verdict
        if worst.note:
            text += f": {worst.output + ': ' if worst.output else ''}{worst.note}"
        print(_WIDTHS.format(operator, backend, dtype, label, *cells, text), flush=True)


def _print_summary(verdicts: Sequence[Verdict], unavailable: dict[str, dict[str, list[str]]]) -> bool:
    """Print what could not run and the counts; return whether something ran and nothing failed."""
    for operator, by_backend in unavailable.items():
        for backend, reasons in by_backend.items():
            print(f"not available: {operator} {backend}: {'; '.join(reasons)}")
    counts = {kind: sum(verdict.verdict == kind for verdict in verdicts) for kind in (PASS, FAIL, REFUSED)}
    print(f"{counts[PASS]} passed, {counts[FAIL]} failed, {counts[REFUSED]} refused")
    if not counts[PASS] and not counts[FAIL]:
        print("nothing was tested")
    return counts[PASS] > 0 and counts[FAIL] == 0


if __name__ == "__main__":
    sys.exit(main())
