"""Which tests can run here, decided before anything imports Triton.

Without a GPU the Triton kernels run in Triton's interpreter. It reads `TRITON_INTERPRET` when Triton is imported, so
the variable is set before this library is; subprocesses that must compile kernels remove it.
"""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
HAS_COMPILER = any(shutil.which(name) for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name)

# What is right must not depend on the processor under the tests; those of the rule itself unset it.
os.environ.setdefault("MSF_PRECISION", "fp32")

if not HAS_CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not HAS_CUDA:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("compiler") and not HAS_COMPILER:
            item.add_marker(pytest.mark.skip(reason="needs a C++ compiler"))
        if item.get_closest_marker("interpreter"):
            if importlib.util.find_spec("triton") is None:
                item.add_marker(pytest.mark.skip(reason="triton is not installed"))
            elif HAS_CUDA:
                item.add_marker(pytest.mark.skip(reason="a CUDA device is here: kernels are compiled, not interpreted"))


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_run():
    torch.manual_seed(0)


@pytest.fixture
def need_backend():
    """Skip where a backend cannot serve an operator on this machine, with its reasons."""
    from msf_kernels import backends

    def check(operator, backend):
        reasons = backends()[operator].get(backend, ["there is no such backend"])
        if reasons:
            pytest.skip(f"{operator} {backend}: {'; '.join(reasons)}")

    return check


@pytest.fixture
def run_fresh():
    """Run a script in a new interpreter, where Triton compiles, and return what it printed."""

    def run(script):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        finished = subprocess.run(
            [sys.executable, "-c", script], check=False, capture_output=True, text=True, env=environment
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    return run
