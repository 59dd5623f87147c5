"""Who may import whom, read from the syntax tree and tried in fresh interpreters."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("msf/**/*.py"), *ROOT.glob("msf_kernels/**/*.py")])
OPERATORS = sorted(path.parent.name for path in ROOT.glob("msf_kernels/*/_reference.py"))
OPTIONAL = {"triton", "numpy", "safetensors", "accelerate", "matplotlib", "sklearn", "torchmetrics", "typer", "rich"}


def imported_modules(path, *, at_import_only):
    """Yield the absolute names that a file imports; only those outside functions if asked."""
    tree = ast.parse(path.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)

    def visit(node):
        for child in ast.iter_child_nodes(node):
            if at_import_only and (isinstance(child, functions) or is_type_checking(child)):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield child.module
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            yield from visit(child)

    return set(visit(tree))


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def package_of(path):
    return path.relative_to(ROOT).parts


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    parts = package_of(path)
    modules = imported_modules(path, at_import_only=False)
    if parts[0] == "msf_kernels":
        assert not {m for m in modules if m == "msf" or m.startswith("msf.")}, "msf_kernels never imports msf"
    private = {m for m in modules if m.startswith("msf_kernels") and any(p.startswith("_") for p in m.split("."))}
    if parts[0] == "msf":
        assert not private, "msf uses public names of msf_kernels only"
    else:
        foreign = {m for m in private if m.split(".")[1] in OPERATORS and m.split(".")[1] != parts[1]}
        assert not foreign, "nobody imports an operator's private files but the operator itself"
    if is_kernel_file(path) or parts[-1].startswith("_native"):
        assert not {m for m in modules if "_reference" in m.split(".")}, "a kernel is never its own yardstick"


def is_kernel_file(path):
    return path.name.startswith("_triton") or "_triton" in path.parts


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if package_of(p)[0] == "msf_kernels" and not is_kernel_file(p)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_msf_kernels_imports_nothing_optional_when_it_is_imported(path):
    top = {m.split(".")[0] for m in imported_modules(path, at_import_only=True)}
    assert not top & OPTIONAL


def run_fresh(script):
    finished = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_msf_kernels_works_where_only_torch_is_installed():
    run_fresh(
        "import sys\n"
        "for name in ('triton', 'safetensors', 'accelerate', 'matplotlib', 'sklearn', 'torchmetrics', 'typer',\n"
        "             'rich', 'PIL', 'jinja2', 'torchdiffeq'):\n"
        "    sys.modules[name] = None\n"
        "import torch, msf_kernels, msf_kernels.sampling\n"
        "from msf_kernels.solvers import HEUN, integrate, uniform_grid\n"
        "end = integrate(lambda z, t: -z, torch.ones(2, 3), uniform_grid(20), HEUN).state\n"
        "assert (end - torch.tensor(-1.0).exp()).abs().max() < 1e-3\n"
        "reasons = msf_kernels.backends()\n"
        "assert all(by_backend['reference'] == [] for by_backend in reasons.values())\n"
    )


def test_importing_asks_for_no_device_and_compiles_nothing():
    run_fresh(
        "import torch\n"
        "def forbidden(*args, **kwargs): raise AssertionError('a device was asked for')\n"
        "torch.cuda.is_available = torch.cuda.device_count = torch.cuda.get_device_properties = forbidden\n"
        "torch.cuda.init = torch.cuda.current_device = forbidden\n"
        "torch.ops.load_library = forbidden\n"
        "import msf, msf_kernels, msf_kernels.sampling, msf_kernels.solvers, msf_kernels.testing\n"
    )


def test_no_source_file_is_longer_than_500_lines():
    too_long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 500}
    assert not too_long
