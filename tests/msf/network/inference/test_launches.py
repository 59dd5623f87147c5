"""What a GPU would run for an evaluation, counted without one, and that it is what was compiled ahead of time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")
ROOT = Path(__file__).parents[4]
MOST_LAUNCHES = 120

# In a process in which Triton compiles: the interpreter's kernels do not say what they would be compiled for.
SCRIPT = """
import json, torch
from importlib import import_module
from benchmarks.gpu_launches import evaluation_launches
from msf_kernels._aot.triton_kernels import _identity
from tests.msf.tiny_unet import TINY
launches = evaluation_launches(n=64)
modules = [import_module(f"msf_kernels.{name}._triton") for name in ("prepared", "attention_block", "group_norm_silu")]
compiled = {_identity(case) for module in modules for case in module.aot_cases(90)}
missing = [
    [launch.operator, launch.shapes, case.label]
    for launch in launches for case in launch.cases if _identity(case) not in compiled
]
rows = [[launch.operator, launch.n_kernels, launch.flops, len(launch.cases)] for launch in launches]
small = [[launch.operator, launch.n_kernels] for launch in evaluation_launches(TINY, n=4, dtype=torch.float32)]
print(json.dumps({"rows": rows, "missing": missing, "float32": small}))
"""


@pytest.fixture(scope="module")
def found():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def count(rows, name):
    return sum(row[1] for row in rows if row[0].endswith(f"::{name}"))


def test_an_evaluation_of_the_published_network_is_at_most_120_launches(found):
    rows = found["rows"]
    assert sum(row[1] for row in rows) <= MOST_LAUNCHES
    # 22 residual blocks of two convolutions, 6 resamplings, the first and the last; every shortcut is in one of them.
    assert count(rows, "prepared_convolution_fwd") == 52
    # Two per residual block, but one in the 12 of 8x8 and 4x4 maps; 6 of attention; the last.
    assert count(rows, "group_norm_silu_fwd") == 2 * 22 - 12 + 6 + 1
    assert count(rows, "attention_block_projection") == 2 * 6
    # Nothing else but the attention and the one copy of the state: no pass for a bias, a residual or a shortcut.
    assert sorted({row[0] for row in rows if not row[3]}) == [
        "aten::_scaled_dot_product_flash_attention",
        "aten::_to_copy",
    ]
    assert count(rows, "_to_copy") == 1


def test_its_arithmetic_is_that_of_the_network(found):
    # 12.47 GFLOP as published, of which 0.86 fall away where maps are doubled.
    assert sum(row[2] for row in found["rows"]) / 64 == pytest.approx(11.61e9, rel=1e-3)


def test_what_runs_is_what_is_compiled_ahead_of_time(found):
    assert found["missing"] == []


def test_float32_leaves_the_convolutions_to_the_library(found):
    assert count(found["float32"], "prepared_convolution_fwd") == 0
    assert count(found["float32"], "convolution") > 10
