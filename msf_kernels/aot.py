"""Compile every GPU kernel without a GPU and report what the compiler made of it.

    python -m msf_kernels.aot [--arch sm_80 --arch sm_90 ...] [--op NAME ...] [--jobs N] [--json FILE] [--markdown FILE]

Triton kernels are compiled in the configurations that their launchers really use, CUDA sources (in a source checkout
with nvcc on PATH) with the flags of the build. Reported per kernel: registers, spilled bytes, shared memory and the
family of tensor-core instructions. Exit code 1 when something does not compile, spills, needs more shared memory than a
block can have, or multiplies matrices without the architecture's own instructions; 2 on bad arguments or where Triton
is missing. Triton caches what it compiles, so that a run after one that was cut short compiles only what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

from msf_kernels._aot.compilation import ARCHITECTURES, Compilation
from msf_kernels._aot.cuda_sources import compile_source, cuda_sources
from msf_kernels._aot.table import markdown, plain, table_rows
from msf_kernels._aot.triton_kernels import compile_share, operators_with_kernels, without_interpreter
from msf_kernels.environment import versions

DEFAULT_ARCHS = ("sm_80", "sm_90", "sm_100")
_ROOT = Path(__file__).parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, report, and return the exit code."""
    operators = operators_with_kernels()
    parser = _parser(operators)
    options = parser.parse_args(arguments)
    for flag, path in (("--json", options.json), ("--markdown", options.markdown)):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{flag} must be in an existing folder; got {path}")
    if options.jobs < 1:
        parser.error(f"--jobs must be >= 1; got {options.jobs}")
    if find_spec("triton") is None:
        print("aot: triton is not installed, so there is nothing to compile the kernels with", file=sys.stderr)
        return 2

    archs = list(dict.fromkeys(options.arch or DEFAULT_ARCHS))
    sources, reason = ([], "only the named operators were asked for") if options.op else cuda_sources(_ROOT)
    compilations = sorted(
        _compile_all(options.op or operators, sources, archs, options.jobs),
        key=lambda compilation: (
            compilation.compiler != "triton",
            compilation.source,
            compilation.kernel,
            archs.index(compilation.arch),
            compilation.label,
        ),
    )
    rows = table_rows(compilations)
    failed = [compilation for compilation in compilations if compilation.problems]
    print(plain(rows))
    if not sources:
        print(f"CUDA sources not compiled: {reason}")
    for compilation in failed:
        name = " ".join(filter(None, (compilation.arch, compilation.source, compilation.kernel, compilation.label)))
        print(f"FAILED {name}: {'; '.join(compilation.problems)}")
    print(f"{len(compilations)} compilations, {len(failed)} failed")
    if options.json is not None:
        report = {
            "format": 1,
            "archs": archs,
            "versions": versions(),
            "passed": not failed,
            "cuda_sources_skipped": reason,
            "compilations": [{**asdict(one), "problems": one.problems} for one in compilations],
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(_document(rows, len(compilations), archs, reason))
    return 1 if failed else 0


def _parser(operators: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m msf_kernels.aot", description="Compile every GPU kernel without a GPU."
    )
    several = partial(parser.add_argument, nargs="+", action="extend", default=[])
    several("--arch", choices=ARCHITECTURES, metavar="ARCH", help=f"default {' '.join(DEFAULT_ARCHS)}")
    several("--op", choices=operators, metavar="NAME", help="operators whose kernels to compile; default all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="processes; default all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every compilation there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return parser


def _compile_all(
    operators: Sequence[str], sources: Sequence[str], archs: Sequence[str], jobs: int
) -> Iterator[Compilation]:
    """Compile in fresh processes, so that an interpreter in this one does not matter."""
    with without_interpreter(), ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        pending: list[Future[list[Compilation]]] = []
        for arch in archs:
            pending += [pool.submit(compile_source, _ROOT, source, arch) for source in sources]
            for operator in operators:
                pending += [pool.submit(compile_share, operator, arch, share, jobs) for share in range(jobs)]
        for done, future in enumerate(as_completed(pending), start=1):
            yield from future.result()
            if sys.stderr.isatty():
                print(f"\r{done} of {len(pending)}", end="" if done < len(pending) else "\n", file=sys.stderr)


def _document(rows: Sequence[tuple[str, ...]], n_compilations: int, archs: Sequence[str], reason: str) -> str:
    found = versions()
    skipped = f"\nCUDA sources were not compiled: {reason}.\n" if reason else ""
    return f"""# Kernels compiled without a GPU

{n_compilations} compilations for {", ".join(archs)} with Triton {found["triton"]} (torch {found["torch"]}), by

    python -m msf_kernels.aot {" ".join(f"--arch {arch}" for arch in archs)} --markdown docs/aot.md

One line per kernel and architecture, over all dtypes, shapes and configurations that the launchers use: the
ranges of registers per thread, of bytes spilled and of local memory per thread (spilled, or arrays of CUDA kernels that
are indexed at run time), of shared memory per block, and the tensor-core instructions found in the PTX. `ok`:
everything compiles, nothing spills, shared memory fits, and kernels that multiply matrices do so with the
architecture's own instructions. It says nothing about speed.
{skipped}
{markdown(rows)}"""


if __name__ == "__main__":
    sys.exit(main())
