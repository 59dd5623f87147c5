"""Compiling the Triton kernels of all operators, in processes that have never seen an interpreter or a GPU."""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msf_kernels
from msf_kernels._aot.compilation import Compilation, families_in

if TYPE_CHECKING:
    from msf_kernels._triton.aot_case import AotCase


def operators_with_kernels() -> list[str]:
    """Return the folders of operators that have Triton kernels."""
    folders = [info.name for info in pkgutil.iter_modules(msf_kernels.__path__) if info.ispkg]
    return [name for name in folders if name[0] != "_" and find_spec(f"msf_kernels.{name}._triton") is not None]


@contextmanager
def without_interpreter() -> Iterator[None]:
    """Let processes that start inside the block compile kernels, whatever this one does.

    Triton reads the variable when it is imported, which importing torch may do, so it must be gone before they start.
    """
    name = "TRITON_INTERPRET"
    kept = os.environ.pop(name, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[name] = kept


def compile_share(operator: str, arch: str, share: int, n_shares: int) -> list[Compilation]:
    """Compile every `n_shares`-th case of an operator, starting at `share`."""
    module = import_module(f"msf_kernels.{operator}._triton")
    cases: Sequence[AotCase] = list(module.aot_cases(_capability(arch)))
    unique = list({_identity(case): case for case in reversed(cases)}.values())[::-1]
    return [_compile(case, operator, arch) for case in unique[share::n_shares]]


def _identity(case: AotCase) -> Hashable:
    """Two cases that differ in nothing but their label are one compilation."""
    constants = tuple(sorted((name, repr(value)) for name, value in case.constexprs.items()))
    options = (case.num_warps, case.num_stages, case.unaligned, case.is_matmul)
    return case.kernel.__name__, tuple(sorted(case.signature.items())), constants, options


def _compile(case: AotCase, operator: str, arch: str) -> Compilation:
    name = case.kernel.__name__
    try:
        compiled = case.compile(_capability(arch))
    except Exception as error:  # whatever the compiler raises is the finding
        lines = str(error).strip().splitlines()
        failure = f"{type(error).__name__}: {lines[-1] if lines else ''}"
        return Compilation("triton", operator, name, arch, case.label, is_matmul=case.is_matmul, error=failure)
    registers, local_bytes = _resources(compiled.asm["cubin"])
    return Compilation(
        "triton",
        operator,
        name,
        arch,
        case.label,
        registers=registers,
        spill_bytes=local_bytes,  # Triton has no arrays in local memory
        local_bytes=local_bytes,
        shared_bytes=compiled.metadata.shared,
        families=families_in(compiled.asm["ptx"]),
        is_matmul=case.is_matmul,
    )


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return registers and bytes of local memory per thread, as the cubin states them."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def _capability(arch: str) -> int:
    return int(arch.removeprefix("sm_"))
