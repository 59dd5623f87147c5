"""The native extension with its CUDA kernels compiled for the CPU, see docs/cuda-emulation.md."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
TORCH = Path(torch.__file__).parent
BASE = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fdata-sections", "-g1", "-Wall", "-Wextra"]
BASE += ["-I", CSRC / "include"]
TORCH_FLAGS = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", TORCH / "include"]
# __CUDA_ARCH__, so that the headers of csrc take what they take on a GPU.
KERNEL_FLAGS = ["-DMSF_EMULATED", "-D__CUDA_ARCH__=900", "-I", HERE / "include", "-I", CSRC / "cuda", "-x", "c++"]


@dataclass(frozen=True)
class Mode:
    """How the kernels are compiled, and what a process needs that loads them.

    Args:
        name: Name of the mode.
        sanitize: Flags of the kernels and of the link.
        emulator: Flags of the emulator, which no sanitizer looks at.
        runtime: Library that must be loaded before all others; empty: none.
        options: Environment of the process.
    """

    name: str
    sanitize: tuple[str, ...]
    emulator: tuple[str, ...] = ()
    runtime: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a process that loads the library."""
        preload = {"LD_PRELOAD": find_runtime(self.runtime)} if self.runtime else {}
        return {**os.environ, "OMP_NUM_THREADS": "1", "MSF_EMULATED_BLOCKS": "2", **self.options, **preload}


ALIGNMENT = Mode(
    "alignment",
    ("-fsanitize=alignment", "-fno-sanitize-recover=all"),
    options={"UBSAN_OPTIONS": "exitcode=66"},
)
ADDRESS = Mode(
    "address",
    ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    ("-DMSF_ASAN",),
    "libasan.so",
    {"ASAN_OPTIONS": "detect_leaks=0 exitcode=66"},
)
THREAD = Mode(
    "thread",
    ("-fsanitize=thread",),
    ("-DMSF_TSAN",),
    "libtsan.so",
    {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66 report_thread_leaks=0"},
)


def find_compiler() -> str | None:
    """Return GCC's C++ compiler, whose sanitizers can be loaded into a Python that is built without them."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    macros = subprocess.run([compiler, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True).stdout
    return compiler if "__GNUC__" in macros and "__clang__" not in macros else None


def find_runtime(library: str) -> str | None:
    """Return the path of a runtime library of the compiler."""
    path = Path(run([find_compiler(), f"-print-file-name={library}"]).strip())
    return str(path.resolve()) if path.is_absolute() else None


def build(mode: Mode, folder: Path, replacement: Path | None = None) -> Path:
    """Build what is missing of the library and return it.

    Args:
        mode: How.
        folder: For the objects of all modes.
        replacement: Taken for the CUDA source of its name; the library is then beside it.
    """
    commands = {}
    for source in [CSRC / "bindings.cpp", *sorted((CSRC / "ops").glob("*.cpp"))]:
        commands[folder / f"{source.stem}.o"] = [*TORCH_FLAGS, "-DMSF_WITH_CUDA", "-DMSF_EMULATED", "-O1", source]
    for source in sorted((CSRC / "cpu").glob("*.cpp")):  # needed to link; what the tests ask for has a CUDA kernel
        commands[folder / f"{source.stem}.cpu.o"] = ["-DMSF_LEVEL=baseline", "-O0", source]
    for source in sorted((CSRC / "cuda").glob("*.cu")):
        target = folder / f"{source.stem}.{mode.name}.o"
        if replacement is not None and source.name == replacement.name:
            source, target = replacement, replacement.with_suffix(".o")
        commands[target] = [*KERNEL_FLAGS, *mode.sanitize, "-O1", source]
    commands[folder / f"emulator.{mode.name}.o"] = [*KERNEL_FLAGS, *mode.emulator, "-O1", HERE / "emulator.cpp"]
    compiler = find_compiler()

    def compile_one(target: Path) -> None:
        part = target.with_suffix(".part")
        run([compiler, *BASE, *commands[target], "-c", "-o", part])
        part.rename(target)

    library = (folder if replacement is None else replacement.parent) / f"emulated.{mode.name}.so"
    with FileLock(folder / "lock"):
        missing = [target for target in commands if not target.exists()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, missing))
        if missing or not library.exists():
            layout = f"-Wl,-T,{HERE / 'shared_memory.ld'}"
            libraries = [f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu", "-ldl"]
            run([compiler, "-shared", *mode.sanitize, layout, *commands, "-o", library, *libraries])
    return library


def build_program(folder: Path, source: Path) -> Path:
    """Build a program of kernels and a `main` on the emulator, and return it."""
    program = folder / source.stem
    with FileLock(folder / "lock"):
        if not program.exists():
            layout = f"-Wl,-T,{HERE / 'shared_memory.ld'}"
            run([find_compiler(), *BASE, *KERNEL_FLAGS, "-O1", source, HERE / "emulator.cpp", layout, "-o", program])
    return program


def run(command) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
