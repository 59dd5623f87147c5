"""The script that compiles against other releases; that it does is what `make compatibility` shows."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compatibility.py")


def test_the_oldest_releases_are_those_of_the_project():
    script = runpy.run_path(str(SCRIPT))
    assert (script["oldest"]("torch"), script["oldest"]("triton")) == ("2.10.0", "3.6.0")


def test_what_cannot_be_downloaded_is_named_and_left_out():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "headers", "0.0.1"],
        env={**os.environ, "PIP_NO_INDEX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("torch 0.0.1: skipped, it cannot be downloaded: ")


@pytest.mark.compiler
def test_a_source_that_does_not_fit_is_named_with_what_the_compiler_says(tmp_path, monkeypatch, capsys):
    script = runpy.run_path(str(SCRIPT))
    monkeypatch.chdir(SCRIPT.parents[1])
    names = script["check_headers"].__globals__
    monkeypatch.setitem(names, "download", lambda *release: Path("torch-0.0.1.whl"))
    monkeypatch.setitem(names, "unpacked", lambda wheel, part: tmp_path)
    assert not script["check_headers"]("0.0.1")
    printed = capsys.readouterr().out
    assert "csrc/ops/tensors.cpp:\n" in printed
    assert "torch/csrc/stable" in printed
