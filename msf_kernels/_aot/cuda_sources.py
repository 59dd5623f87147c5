"""Compiling the CUDA sources of a checkout with the flags of the build."""

from __future__ import annotations

import contextlib
import re
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path

from msf_kernels._aot.compilation import Compilation

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'"
    r".*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def cuda_sources(root: Path) -> tuple[list[str], str]:
    """Return the names of the CUDA sources that can be compiled here; without any, the reason."""
    sources = sorted(path.name for path in (root / "csrc" / "cuda").glob("*.cu"))
    if not sources:
        return [], "no CUDA sources here: they come with a source checkout"
    if shutil.which("nvcc") is None:
        return [], "nvcc is not on PATH"
    return sources, ""


def compile_source(root: Path, source: str, arch: str) -> list[Compilation]:
    """Compile one file for one architecture; one entry per kernel in it."""
    # The build speaks of its files relative to the checkout.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(root):
        build = runpy.run_path("setup.py", run_name="setup_functions")
        commands = build["compile_commands"](
            Path(folder), [arch.removeprefix("sm_")], build["find_torch"](), build["find_compiler"]()
        )
        (command,) = (command for command in commands.values() if f"csrc/cuda/{source}" in command)
        done = subprocess.run([*command, "-Xptxas", "-v"], capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        first = next((line for line in lines if "error" in line), "nvcc failed")
        return [Compilation("nvcc", source, "", arch, "", error=first)]
    return parse_ptxas(done.stdout + done.stderr, source, arch)


def parse_ptxas(text: str, source: str, arch: str) -> list[Compilation]:
    """Read what `ptxas -v` says of each kernel."""
    found = []
    for entry in _ENTRY.finditer(text):
        kernel, arguments = _demangled(entry["name"])
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        found.append(
            Compilation(
                "nvcc",
                source,
                kernel,
                arch,
                arguments,
                registers=int(entry["registers"]),
                spill_bytes=int(entry["stores"]) + int(entry["loads"]),
                local_bytes=int(entry["stack"]),
                shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    if not found:
        return [Compilation("nvcc", source, "", arch, "", error="ptxas reported no kernel")]
    return found


def _demangled(name: str) -> tuple[str, str]:
    """Return the kernel's name without namespaces, and its template arguments; as it is where there is no c++filt."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        return name, ""
    text = subprocess.run([tool, name], capture_output=True, text=True).stdout.strip() or name
    found = re.match(r"(?:void )?(?:\(anonymous namespace\)::|\w+::)*(\w+)(?:<(.*)>)?\(", text)
    return (found[1], found[2] or "") if found else (text, "")
