"""What the build does where it cannot build; building itself is what installs these tests' library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def build(tmp_path):
    """Run the build in a copy of the sources and return the finished process and the library's files."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    package = tmp_path / "msf_kernels"
    package.mkdir()

    def run(**environment):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MSF_") and name != "CXX"}
        done = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**kept, **environment},
        )
        return done, list(package.glob("_C.*"))

    return run


def test_without_a_compiler_the_install_succeeds_and_prints_why(build):
    done, libraries = build(CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "installed without the native extension" in done.stdout
    assert "'no-such-compiler', does not exist" in done.stdout
    assert libraries == []


def test_with_nothing_on_the_path_the_install_succeeds_and_prints_why(build, tmp_path):
    done, libraries = build(PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler (c++, g++ or clang++) on PATH" in done.stdout
    assert libraries == []


def test_a_compiler_that_fails_is_named_with_its_command(build, tmp_path):
    compiler = tmp_path / "fails"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    done, _ = build(CXX=str(compiler))
    assert done.returncode == 0, done.stderr
    assert f"{compiler} -std=c++17" in done.stdout


def test_a_build_that_is_asked_for_fails_when_it_cannot_be_done(build):
    done, _ = build(CXX="no-such-compiler", MSF_BUILD_NATIVE="1")
    assert done.returncode != 0
    assert "the native extension cannot be built: the C++ compiler that CXX names" in done.stderr


def test_no_build_is_a_choice_and_removes_an_old_library(build, tmp_path):
    (tmp_path / "msf_kernels" / "_C.abi3.so").touch()
    done, libraries = build(MSF_BUILD_NATIVE="0")
    assert done.returncode == 0, done.stderr
    assert "MSF_BUILD_NATIVE=0" in done.stdout
    assert libraries == []


def test_without_torch_the_install_succeeds_and_prints_why(build, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find_spec(name, *rest)\n"
    )
    done, libraries = build(PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "torch is not installed" in done.stdout
    assert libraries == []


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MSF_BUILD_NATIVE", "yes", "MSF_BUILD_NATIVE must be auto, 0 or 1; got 'yes'"),
        ("MSF_CUDA_ARCHS", "hopper", "MSF_CUDA_ARCHS must look like 80;90a; got hopper"),
    ],
)
def test_a_setting_that_means_nothing_is_named(build, tmp_path, variable, value, message):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\nexit 1\n")
    nvcc.chmod(0o755)
    done, _ = build(**{variable: value, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert message in done.stdout + done.stderr
