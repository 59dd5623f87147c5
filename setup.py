"""Build of the optional native extension; all other metadata is in pyproject.toml.

`MSF_BUILD_NATIVE` is `auto` (default: build where torch and a C++ compiler are, else say why not), `1` (fail when it
cannot be built) or `0` (do not build). `MSF_CUDA_ARCHS`, such as `80;90a`, forces the CUDA part and chooses its
architectures; without it the CUDA part is built where nvcc is and torch is a CUDA build of the same major version.

The library is plain C++ against torch's stable ABI: it is loaded with `torch.ops.load_library`, includes no Python
header and serves every Python and every torch from 2.10 on. torch is found without being imported.
"""

import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10
DEFAULT_CUDA_ARCHS = "80;90;100"
# -ffp-contract=off: the same bits whatever the instruction set, see docs/decisions/0003-native-extension.md.
OPTIMISE = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
CPU_LEVELS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    CPU_LEVELS["avx2"] = ["-march=x86-64-v3"]
    CPU_LEVELS["avx512"] = ["-march=x86-64-v4", "-mprefer-vector-width=512"]


class CannotBuildError(Exception):
    """Why the extension cannot be built here."""


def wanted_build() -> str:
    """Return `MSF_BUILD_NATIVE`: `auto`, `0` or `1`."""
    choice = os.environ.get("MSF_BUILD_NATIVE") or "auto"
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"MSF_BUILD_NATIVE must be auto, 0 or 1; got {choice!r}")
    return choice


def find_torch() -> Path:
    """Return the folder of the installed torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuildError("torch is not installed (install it first and use --no-build-isolation)")
    return Path(spec.origin).parent


def find_compiler() -> list[str]:
    """Return the C++ compiler: `CXX`, else the first of c++, g++, clang++."""
    if os.environ.get("CXX"):
        command = shlex.split(os.environ["CXX"])
        if shutil.which(command[0]) is None:
            raise CannotBuildError(f"the C++ compiler that CXX names, {command[0]!r}, does not exist")
        return command
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise CannotBuildError("no C++ compiler (c++, g++ or clang++) on PATH, and CXX is not set")


def cuda_archs(torch_folder: Path) -> list[str]:
    """Return the architectures of the CUDA part, such as `["80", "90a"]`; empty: CPU only."""
    nvcc = shutil.which("nvcc")
    asked = os.environ.get("MSF_CUDA_ARCHS")
    if asked:
        if nvcc is None:
            raise CannotBuildError("MSF_CUDA_ARCHS is set, but there is no nvcc on PATH")
        archs = [arch.removeprefix("sm_") for arch in re.split(r"[;, ]+", asked.strip()) if arch]
        wrong = [arch for arch in archs if not re.fullmatch(r"\d{2,3}[af]?", arch)]
        if wrong:
            raise CannotBuildError(f"MSF_CUDA_ARCHS must look like 80;90a; got {', '.join(wrong)}")
        return archs
    torch_cuda = runpy.run_path(str(torch_folder / "version.py")).get("cuda")
    if nvcc is None or torch_cuda is None:
        return []
    release = re.search(r"release (\d+)\.", run([nvcc, "--version"]))
    if release is None or release.group(1) != torch_cuda.split(".")[0]:
        print(f"msf_kernels: CPU only: nvcc is not of CUDA {torch_cuda}, with which torch was built")
        return []
    known = set(re.findall(r"compute_(\d+)", run([nvcc, "--list-gpu-arch"])))
    return [arch for arch in DEFAULT_CUDA_ARCHS.split(";") if arch in known]


def run(command: list[str]) -> str:
    """Run a command and return its output; a failure becomes the reason."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuildError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def compile_commands(build: Path, archs: list[str], torch_folder: Path, compiler: list[str]) -> dict[Path, list[str]]:
    """Return `{object: command}` for every object of the library."""
    base = [*compiler, "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", f"-I{CSRC / 'include'}"]
    torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-isystem", str(torch_folder / "include")]
    if archs:
        torch_flags += ["-DUSE_CUDA", "-DMSF_WITH_CUDA"]
    if "avx512" in CPU_LEVELS:
        torch_flags += ["-DMSF_X86_LEVELS"]
    commands = {}
    for source in [CSRC / "bindings.cpp", *sorted((CSRC / "ops").glob("*.cpp"))]:
        target = build / f"{source.stem}.o"
        commands[target] = [*base, "-O2", *torch_flags, "-c", str(source), "-o", str(target)]
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        for level, flags in CPU_LEVELS.items():
            target = build / f"{source.stem}.{level}.o"
            commands[target] = [*base, *OPTIMISE, *flags, f"-DMSF_LEVEL={level}", "-c", str(source), "-o", str(target)]
    if archs:
        codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
        if archs[-1].isdigit():  # devices that are newer than all of these compile it themselves
            codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        for source in sorted((CSRC / "cuda").glob("*.cu")):
            target = build / f"{source.stem}.cuda.o"
            flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{CSRC / 'include'}", *codes]
            commands[target] = ["nvcc", *flags, "-c", str(source), "-o", str(target)]
    return commands


class BuildNative(build_ext):
    """Compile the CPU loops once per instruction-set level, the rest once, and link one library."""

    def build_extension(self, ext: Extension) -> None:
        """Build, or say why not; under `MSF_BUILD_NATIVE=1` a reason is an error."""
        choice = wanted_build()
        try:
            if choice == "0":
                raise CannotBuildError("MSF_BUILD_NATIVE=0")
            self._build(Path(self.get_ext_fullpath(ext.name)))
        except CannotBuildError as reason:
            if choice == "1":
                raise SystemExit(f"msf_kernels: the native extension cannot be built: {reason}") from reason
            print(f"msf_kernels: installed without the native extension: {reason}", flush=True)
            # A library of an earlier build in this source tree would not fit the Python files.
            for stale in Path("msf_kernels").glob("_C.*"):
                stale.unlink()

    def _build(self, target: Path) -> None:
        torch_folder = find_torch()
        compiler = find_compiler()
        archs = cuda_archs(torch_folder)
        build = Path(self.build_temp) / "msf_native"
        build.mkdir(parents=True, exist_ok=True)
        commands = compile_commands(build, archs, torch_folder, compiler)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(run, commands.values()))
        link = [*compiler, "-shared"]
        libraries = [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu"]
        if archs:
            link = ["nvcc", "-shared", "-ccbin", shutil.which(compiler[0]) or compiler[0], "-cudart=static"]
            if (torch_folder / "lib" / "libtorch_cuda.so").exists():
                libraries.append("-ltorch_cuda")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place, so that a process which has the old library loaded keeps it.
        fresh = target.with_suffix(".linking")
        run([*link, *map(str, commands), "-o", str(fresh), *libraries])
        fresh.replace(target)


if __name__ == "__main__":  # as build tools run it; the functions above also serve other scripts
    setup(
        ext_modules=[
            Extension(
                "msf_kernels._C",
                sources=[],
                depends=sorted(str(path) for path in CSRC.rglob("*") if path.is_file()),
                py_limited_api=True,
                optional=True,
            )
        ],
        cmdclass={"build_ext": BuildNative},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
