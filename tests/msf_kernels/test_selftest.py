import json
import os
import subprocess
import sys

import pytest

from msf_kernels import backends


def selftest(*arguments, **environment):
    command = [sys.executable, "-m", "msf_kernels.selftest", *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, **environment}, cwd=os.getcwd()
    )


def test_every_operator_and_backend_of_this_machine_stays_within_its_error_budget(tmp_path):
    file = tmp_path / "selftest.json"
    finished = selftest("--seeds", "5", "--json", str(file), TRITON_INTERPRET="0")
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    text = json.dumps(json.loads(file.read_text()))
    served = [(op, name) for op, table in backends().items() for name, why in table.items() if not why]
    assert all(f'"{op}"' in text and f'"{name}"' in text for op, name in served if name != "triton")


@pytest.mark.interpreter
@pytest.mark.parametrize("operator", ["group_norm_silu", "class_distance", "symmetric_path", "rk_combine"])
def test_triton_kernels_stay_within_their_error_budget_in_the_interpreter(operator):
    finished = selftest("--op", operator, "--backend", "triton", "--seeds", "1", TRITON_INTERPRET="1")
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]


def test_an_unknown_backend_ends_with_code_two():
    assert selftest("--backend", "quantum").returncode == 2
