"""Whether this checkout fits the oldest and other releases of torch and Triton, without installing any of them.

    python tests/compatibility.py headers [VERSION ...]   # sources of the native extension against torch's headers
    python tests/compatibility.py triton [VERSION ...] [--arch NAME ...] [--op NAME ...]   # compiled, then interpreted

Without a version, `headers` takes the oldest torch that pyproject.toml allows and the installed one, `triton` likewise.
Wheels are downloaded once and unpacked into build/compatibility. Where that fails (no network), a line says what was
left out, and the exit code is that of the rest. What came of it: docs/compatibility.md.
"""

import argparse
import importlib.metadata
import os
import re
import runpy
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "compatibility"
# NumPy 2.4 refuses what the interpreter of Triton 3.6 and before does with arrays of one element; 2.3 warns of it.
OLD_INTERPRETER = (3, 6)
NUMPY_OF_OLD_INTERPRETER = "2.3.5"
QUIET = ("-W", "ignore:Conversion of an array with ndim:DeprecationWarning")
# Headers are the same on all platforms, and these wheels are the smallest.
SMALLEST_TORCH = ("--platform", "manylinux_2_28_aarch64", "--python-version", "3.12")


class CannotDownloadError(Exception):
    """Why there is no wheel."""


def oldest(package: str) -> str:
    """Return the oldest release of a package that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    (bound,) = (found[1] for text in requirements if (found := re.fullmatch(rf"{package}>=([\d.]+)", text)))
    return bound if bound.count(".") == 2 else f"{bound}.0"


def installed(package: str) -> str:
    """Return the installed release, without its build."""
    return importlib.metadata.version(package).partition("+")[0]


def download(package: str, version: str, *options: str) -> Path:
    """Return the wheel of a release."""
    folder = CACHE / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *options]
    found = sorted(folder.glob(f"{package}-{version}-*.whl"))
    if not found:
        done = subprocess.run(
            [*command, "--dest", str(folder), f"{package}=={version}"], capture_output=True, text=True
        )
        found = sorted(folder.glob(f"{package}-{version}-*.whl"))
        if done.returncode or not found:
            raise CannotDownloadError((done.stderr.strip().splitlines() or ["pip says nothing"])[-1])
    return found[0]


def unpacked(wheel: Path, part: str) -> Path:
    """Return the folder with what is below `part` in a wheel."""
    folder = CACHE / wheel.stem
    if not folder.exists():
        with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=CACHE) as fresh:
            archive.extractall(fresh, [name for name in archive.namelist() if name.startswith(part)])
            for program in Path(fresh).glob("**/bin/*"):  # a zip file has no permissions to execute
                program.chmod(0o755)
            Path(fresh).rename(folder)
            Path(fresh).mkdir()  # for the context manager to remove
    return folder


def check_headers(version: str) -> bool:
    """Check the syntax of every source that includes torch's headers, as for a build with CUDA."""
    os.chdir(ROOT)
    build = runpy.run_path("setup.py", run_name="setup_functions")
    torch = build["find_torch"]()
    if version != installed("torch"):
        torch = unpacked(download("torch", version, *SMALLEST_TORCH), "torch/include/") / "torch"
    commands = build["compile_commands"](Path("unused"), ["90"], torch, build["find_compiler"]())
    fits = True
    for command in (command for command in commands.values() if "-isystem" in command):
        done = subprocess.run([*command[:-2], "-fsyntax-only"], capture_output=True, text=True)
        if done.returncode:
            fits = False
            print(f"{command[-3]}:\n{done.stderr}")
    return fits


def check_triton(version: str, archs: list[str], operators: list[str]) -> bool:
    """Compile Triton kernels ahead of time with a release, and run tests of the interpreted ones."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folders = [] if version == installed("triton") else [unpacked(download("triton", version), "triton")]
    is_old = tuple(int(part) for part in version.split(".")[:2]) <= OLD_INTERPRETER
    if is_old:
        folders.append(unpacked(download("numpy", NUMPY_OF_OLD_INTERPRETER), "numpy"))
    environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
    names = [name for arch in archs for name in ("--arch", arch)]
    operators = ["--op", *operators] if operators else []
    tests = operators and ["-k", " or ".join(operators[1:])]
    commands = (
        ["-c", f"import triton; assert triton.__version__ == {version!r}, triton.__version__"],
        ["-m", "msf_kernels.aot", *names, *operators],
        ["-m", "pytest", "-q", "-m", "interpreter", *(QUIET if is_old else ()), "tests/msf_kernels", *tests],
    )
    for command in commands:
        if subprocess.run([sys.executable, *command], cwd=ROOT, env=environment).returncode:
            return False
    return True


def main() -> int:
    """Check, print a line per release, and return the exit code."""
    parser = argparse.ArgumentParser(description="Other releases of torch and Triton.")
    parser.add_argument("what", choices=("headers", "triton"))
    parser.add_argument("versions", nargs="*", metavar="VERSION")
    parser.add_argument("--arch", nargs="+", default=["sm_90"], metavar="NAME", help="of Triton's kernels")
    parser.add_argument("--op", nargs="+", default=[], metavar="NAME", help="operators of Triton's; default all")
    options = parser.parse_args()
    package = "torch" if options.what == "headers" else "triton"
    (CACHE / "wheels").mkdir(parents=True, exist_ok=True)
    fits = True
    for version in dict.fromkeys(options.versions or [oldest(package), installed(package)]):
        try:
            passed = check_headers(version) if package == "torch" else check_triton(version, options.arch, options.op)
        except CannotDownloadError as reason:
            print(f"{package} {version}: skipped, it cannot be downloaded: {reason}")
            continue
        print(f"{package} {version}: {'fits' if passed else 'DOES NOT FIT'}", flush=True)
        fits &= passed
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
