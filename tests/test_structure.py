"""No import circle, and no import that runs up, in the three packages; imports inside functions count too."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up: a part imports itself and parts before it.
ORDER = {
    "msf": (
        "interruption", "ranks", "plain_values", "versions", "config", "device", "files", "precision", "data",
        "autoencoder", "codes", "network", "judge", "flow", "checkpoints", "medsymmflow", "provenance", "evaluate",
        "calibrate", "report", "training", "pools", "_moved", "__init__", "cli", "__main__",
    ),
    "msf_kernels": (
        "errors", "shapes", "distinct", "fixed_order", "_schemas", "_tracing", "_derivatives", "_overlap",
        "memory_format", "_measured", "checks", "backend", "_ext", "_triton",
        "philox_normal", "rk_combine", "scaled_error_norm", "symmetric_path", "class_distance", "group_norm_silu",
        "spatial_attention", "conv3x3", "attention_block", "prepared", "__init__", "fp8", "solvers", "sampling",
        "environment", "testing", "selftest", "tune", "_aot", "aot",
    ),
    "benchmarks": (
        "__init__", "published", "rows", "timing", "context", "agreement", "figures", "peers", "energy", "limits",
        "registry", "workloads", "cold_start", "solver_overhead", "precision_gate", "small_data", "suites",
        "peak_memory", "test_operators", "verify", "layers", "gpu_launches", "gpu_model", "gpu_operators", "gpu_bench",
        "gpu_check", "gpu_run", "compare", "readme", "report", "run", "__main__",
    ),
}  # fmt: skip

# An operator needs a place only if others import it.
OPERATORS = sorted(path.parent.name for path in ROOT.glob("msf_kernels/*/_reference.py"))
ORDER["msf_kernels"] = tuple(
    name
    for part in ORDER["msf_kernels"]
    for name in ([*(op for op in OPERATORS if op not in ORDER["msf_kernels"]), part] if part == "__init__" else [part])
)


def module_files():
    """Return `{module: file}` of the three packages."""
    files = {}
    for package in ORDER:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imports_of(path, modules):
    """Return the modules among `modules` that a file imports anywhere, functions and annotations included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else node.module for name in names}
    return found & modules.keys()


FILES = module_files()
ARROWS = {module: imports_of(path, FILES) - {module} for module, path in FILES.items()}


def part_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("package", ORDER)
def test_every_part_has_a_place_in_the_order(package):
    assert {part_of(m) for m in FILES if m.split(".")[0] == package} == set(ORDER[package])


@pytest.mark.parametrize("package", ORDER)
def test_no_arrow_runs_up(package):
    height = {part: index for index, part in enumerate(ORDER[package])}
    upward = [
        f"{module} -> {target}"
        for module, targets in ARROWS.items()
        for target in sorted(targets)
        if module.split(".")[0] == target.split(".")[0] == package and height[part_of(module)] < height[part_of(target)]
    ]
    assert not upward, "imports that run up: " + ", ".join(upward)


def test_there_is_no_circle():
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(error.args[1]))


def test_benchmarks_stand_on_msf_and_msf_on_the_kernels():
    rank = {"msf_kernels": 0, "msf": 1, "benchmarks": 2}
    wrong = [
        f"{module} -> {target}"
        for module, targets in ARROWS.items()
        for target in targets
        if rank[module.split(".")[0]] < rank[target.split(".")[0]]
    ]
    assert not wrong


CONSTRUCTORS = {"load_official", "open_latent_cache"}
MAX_PARAMETERS, MAX_LINES = 8, 400


def parameters_of(function):
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    others = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    return [each.arg for each in (*named, *others) if each.arg not in ("self", "cls")]


def test_no_function_of_msf_takes_many_parameters():
    crowded = [
        f"{path.relative_to(ROOT)}: {node.name} takes {len(parameters_of(node))}"
        for module, path in FILES.items()
        if module.split(".")[0] == "msf"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name not in CONSTRUCTORS
        and len(parameters_of(node)) > MAX_PARAMETERS
    ]
    assert not crowded, "; ".join(crowded)


def test_no_file_of_msf_is_long():
    files = [path for module, path in FILES.items() if module.split(".")[0] == "msf"]
    too_long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not too_long
