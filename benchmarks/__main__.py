"""Run, check, compare and report benchmarks: `python -m benchmarks run | verify | compare | report | readme | list`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.registry import SUITES
from benchmarks.timing import CLOCKS


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    result: int = options.run(options)
    return result


def _run(options: argparse.Namespace) -> int:
    from benchmarks.run import run

    return run(options)


def _verify(options: argparse.Namespace) -> int:
    from benchmarks.run import verify_only

    return verify_only(options)


def _list(options: argparse.Namespace) -> int:
    from benchmarks.run import chosen_jobs

    for job in chosen_jobs(options):
        print(f"{job.suite:12} {job.name:40} {job.note}")
    return 0


def _folder(options: argparse.Namespace) -> int:
    import torch

    from benchmarks.rows import machine_folder

    print(machine_folder(torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from benchmarks.compare import compare_files

    return compare_files(options.before, options.after, options.least)


def _report(options: argparse.Namespace) -> int:
    from benchmarks.report import write_report

    return write_report(options.files, options.out)


def _readme(options: argparse.Namespace) -> int:
    from benchmarks.readme import update_readme

    return update_readme(check=options.check)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(":")[0] + ".")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("--suite", choices=SUITES, nargs="+", default=list(SUITES), metavar="SUITE",
                        help=f"{', '.join(SUITES)}; default all")  # fmt: skip
    choice.add_argument("--only", nargs="+", metavar="JOB", help="jobs by name; * and ? are wildcards")
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    machine.add_argument("--threads", type=int, metavar="N", help="threads of the CPU; default all")
    machine.add_argument("--quick", action="store_true", help="tiny sizes, two samples: shows that everything works")

    run = commands.add_parser("run", parents=[choice, machine], help="check, then measure")
    run.add_argument("--out", type=Path, metavar="FILE", help="write rows as JSON Lines")
    run.add_argument("--save", action="store_true", help="write rows to benchmarks/results/MACHINE/SUITE.jsonl")
    run.add_argument("--rounds", type=int, metavar="N", help="samples per variant; default: as each job says")
    run.add_argument("--full", action="store_true", help="peers run all of their work, however slow")
    run.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of the processor; needs --threads 1")
    run.add_argument("--no-verify", action="store_true", help="skip the tests; variants must still agree")
    run.set_defaults(run=_run)

    verify = commands.add_parser("verify", parents=[choice, machine], help="tests and agreement only, nothing is timed")
    verify.set_defaults(run=_verify)

    listing = commands.add_parser("list", parents=[choice], help="print the jobs")
    listing.set_defaults(run=_list)

    folder = commands.add_parser("folder", help="print where --save keeps the results of this machine")
    folder.add_argument("--device", choices=("cpu", "cuda"))
    folder.set_defaults(run=_folder)

    compare = commands.add_parser("compare", help="exit code 1 if the second file shows a regression")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    compare.add_argument("--least", type=float, default=0.1, metavar="SHARE",
                         help="smallest change of the median that counts; default 0.1")  # fmt: skip
    compare.set_defaults(run=_compare)

    report = commands.add_parser("report", help="HTML and PNG from files of rows")
    report.add_argument("files", type=Path, nargs="+", help="JSON Lines, or JSON with rows")
    report.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    report.set_defaults(run=_report)

    readme = commands.add_parser("readme", help="write the README's table from the committed results")
    readme.add_argument("--check", action="store_true", help="exit code 1 if it is not current")
    readme.set_defaults(run=_readme)
    return parser


if __name__ == "__main__":
    sys.exit(main())
