import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

import msf_kernels
from msf_kernels import backends
from msf_kernels._aot.compilation import Compilation, families_in
from msf_kernels._aot.cuda_sources import compile_source, cuda_sources, parse_ptxas
from msf_kernels._aot.table import markdown, plain, table_rows
from msf_kernels._aot.triton_kernels import operators_with_kernels
from msf_kernels.aot import main

ROOT = Path(__file__).parents[2]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")

GOOD = Compilation("triton", "rk_combine", "_kernel", "sm_90", "fp32", 40, 0, 0, 1024)
MATMUL = replace(GOOD, source="spatial_attention", families=("mma.sync", "wgmma"), is_matmul=True)


def test_a_good_compilation_has_no_problem():
    assert GOOD.problems == []
    assert MATMUL.problems == []
    assert replace(MATMUL, arch="sm_80").problems == []
    assert replace(MATMUL, arch="sm_100", families=("tcgen05",)).problems == []


@pytest.mark.parametrize(
    ("compilation", "problem"),
    [
        (replace(GOOD, spill_bytes=8), "spills 8 bytes per thread"),
        (replace(GOOD, shared_bytes=233 * 1024), "needs 238592 bytes of shared memory; 232448 are there"),
        (replace(GOOD, arch="sm_80", shared_bytes=164 * 1024), "needs 167936 bytes of shared memory; 166912 are there"),
        (replace(MATMUL, families=("mma.sync",)), "multiplies matrices without wgmma: mma.sync"),
        (replace(MATMUL, arch="sm_100"), "multiplies matrices without tcgen05: mma.sync, wgmma"),
        (
            replace(MATMUL, arch="sm_80", families=()),
            "multiplies matrices without mma.sync: no tensor-core instruction",
        ),
        (replace(GOOD, registers=None, error="no"), "does not compile: no"),
    ],
)
def test_what_is_not_acceptable_is_named(compilation, problem):
    assert compilation.problems == [problem]


def test_families_are_read_from_ptx():
    assert families_in("mma.sync.aligned.m16n8k16 wgmma.mma_async.sync") == ("mma.sync", "wgmma")
    assert families_in("tcgen05.mma.cta_group::1") == ("tcgen05",)
    assert families_in("fma.rn.f32") == ()


def test_what_ptxas_says_is_read_per_kernel():
    text = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3onePf' for 'sm_80'
ptxas info    : Function properties for _Z3onePf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 360 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3twoPf' for 'sm_80'
ptxas info    : Function properties for _Z3twoPf
    40 bytes stack frame, 60 bytes spill stores, 64 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 2048 bytes smem, 360 bytes cmem[0]
"""
    one, two = parse_ptxas(text, "kernels.cu", "sm_80")
    assert (one.registers, one.spill_bytes, one.shared_bytes, one.problems) == (8, 0, 0, [])
    assert (two.registers, two.spill_bytes, two.local_bytes, two.shared_bytes) == (255, 124, 40, 2048)
    assert two.problems == ["spills 124 bytes per thread"]
    (nothing,) = parse_ptxas("", "kernels.cu", "sm_80")
    assert nothing.problems == ["does not compile: ptxas reported no kernel"]


def test_the_table_has_the_worst_of_a_kernels_configurations():
    rows = table_rows([GOOD, replace(GOOD, registers=64), replace(GOOD, spill_bytes=4), MATMUL])
    kernel = ("rk_combine", "_kernel", "sm_90", "3", "40 to 64", "0 to 4", "0", "1024", "-", "1 FAILED")
    attention = ("spatial_attention", "_kernel", "sm_90", "1", "40", "0", "0", "1024", "mma.sync, wgmma", "ok")
    assert rows == [kernel, attention]
    assert "| rk_combine | `_kernel` | sm_90 | 3 | 40 to 64 |" in markdown(rows)
    assert plain(rows).splitlines()[1].startswith("rk_combine         _kernel  sm_90")


def test_every_operator_that_offers_triton_is_compiled():
    folders = {
        getattr(msf_kernels, name).__module__.split(".")[1] for name, table in backends().items() if "triton" in table
    }
    assert folders == set(operators_with_kernels())


TOY = """
import sys
import triton
import triton.language as tl
from msf_kernels._aot.triton_kernels import _compile
from msf_kernels._triton.aot_case import AotCase

@triton.jit
def product_kernel(out_ptr, a_ptr, b_ptr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tile = offs[:, None] * BLOCK + offs[None, :]
    product = tl.dot(tl.load(a_ptr + tile), tl.load(b_ptr + tile))
    tl.store(out_ptr + tile, product)

pointers = dict.fromkeys(("a_ptr", "b_ptr"), "*fp16") | {"out_ptr": "*fp32"}
good = AotCase("toy", product_kernel, pointers, {"BLOCK": 64}, is_matmul=True)
for arch in ("sm_80", "sm_90", "sm_100"):
    compilation = _compile(good, "toy", arch)
    print(arch, compilation.families, compilation.problems, compilation.registers > 8, compilation.shared_bytes > 0)
small = AotCase("toy", product_kernel, pointers, {"BLOCK": 16}, is_matmul=True)
print(_compile(small, "toy", "sm_90").problems)
crowded = AotCase("toy", product_kernel, pointers, {"BLOCK": 128}, num_warps=1)
print(_compile(crowded, "toy", "sm_80").problems)
broken = AotCase("toy", product_kernel, pointers, {"BLOCK": 48})
print(_compile(broken, "toy", "sm_80").problems)
"""


@needs_triton
@pytest.mark.slow
def test_a_matrix_product_is_seen_on_tensor_cores_and_spills_are_seen(tmp_path):
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    sm_80, sm_90, sm_100, small, crowded, broken = done.stdout.splitlines()
    assert sm_80 == "sm_80 ('mma.sync',) [] True True"
    assert sm_90 == "sm_90 ('wgmma',) [] True True"
    assert sm_100 == "sm_100 ('tcgen05',) [] True True"
    assert "multiplies matrices without wgmma" in small
    assert "spills" in crowded
    assert "does not compile" in broken
    assert "power of 2" in broken


ONCE_SPILLED = """
from importlib import import_module
from msf_kernels._aot.triton_kernels import _compile

for operator, words in (
    ("spatial_attention", ("float32", "D=32", "bwd_kv")),
    ("group_norm_silu", ("float32", "256+128", "bwd_kernel")),
):
    for case in import_module(f"msf_kernels.{operator}._triton").aot_cases(90):
        if all(word in case.label for word in words):
            print(operator, _compile(case, operator, "sm_90").problems)
"""


@needs_triton
def test_what_spilled_in_an_older_triton_does_not_spill():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    folders = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", ONCE_SPILLED], capture_output=True, text=True, env=environment | {"PYTHONPATH": folders}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["spatial_attention []", "group_norm_silu []"]


@needs_triton
def test_the_command_compiles_although_the_interpreter_is_switched_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    report, table = tmp_path / "aot.json", tmp_path / "aot.md"
    flags = ["--arch", "sm_90", "--op", "philox_normal", "--jobs", "1", "--json", str(report), "--markdown", str(table)]
    assert main(flags) == 0
    assert "0 failed" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["passed"]
    assert {row["kernel"] for row in found["compilations"]} >= {"_philox_normal_fwd_kernel"}
    assert all(row["registers"] > 0 and row["problems"] == [] for row in found["compilations"])
    assert "| philox_normal | `_philox_normal_fwd_kernel` | sm_90 |" in table.read_text()


def test_without_triton_the_command_exits_with_two_and_one_sentence():
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "from msf_kernels.aot import main\n"
        "sys.exit(main(['--arch', 'sm_80']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "aot: triton is not installed, so there is nothing to compile the kernels with\n"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--arch", "sm_12"], "invalid choice: 'sm_12'"),
        (["--op", "nothing"], "invalid choice: 'nothing'"),
        (["--jobs", "0"], "--jobs must be >= 1; got 0"),
        (["--json", "no/such/folder/x.json"], "--json must be in an existing folder"),
        (["--markdown", "no/such/folder/x.md"], "--markdown must be in an existing folder"),
    ],
)
def test_bad_arguments_exit_with_two(flags, text, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert text in capsys.readouterr().err


def test_where_cuda_sources_cannot_be_compiled_the_reason_is_given(tmp_path, monkeypatch):
    assert cuda_sources(tmp_path) == ([], "no CUDA sources here: they come with a source checkout")
    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    (folder / "toy.cu").write_text("")
    monkeypatch.setenv("PATH", "")
    assert cuda_sources(tmp_path) == ([], "nvcc is not on PATH")


@needs_nvcc
@pytest.mark.slow
def test_a_cuda_source_is_compiled_with_the_flags_of_the_build(tmp_path):
    folder = tmp_path / "csrc" / "cuda"
    folder.mkdir(parents=True)
    (tmp_path / "csrc" / "include").mkdir()
    shutil.copy(ROOT / "setup.py", tmp_path)
    (folder / "toy.cu").write_text(
        "__global__ void doubled(float *x) { x[threadIdx.x] *= 2; }\n"
        "namespace a { template <typename T, int N> __global__ void local(T *x, int n) {\n"
        "  float kept[64] = {};\n"
        "  for (int i = 0; i < n; ++i) kept[(i * i) & 63] += x[i];\n"
        "  x[0] = kept[n & 63];\n"
        "} }\n"
        "template __global__ void a::local<float, 3>(float *, int);\n"
    )
    assert cuda_sources(tmp_path) == (["toy.cu"], "")
    found = sorted(compile_source(tmp_path, "toy.cu", "sm_90"), key=lambda compilation: compilation.kernel)
    assert [(one.kernel, one.label, one.spill_bytes, one.local_bytes, one.problems) for one in found] == [
        ("doubled", "", 0, 0, []),
        ("local", "float, 3", 0, 256, []),
    ]
    (folder / "toy.cu").write_text("__global__ void broken( {}")
    (failed,) = compile_source(tmp_path, "toy.cu", "sm_90")
    assert "error" in failed.problems[0]
