"""The commands for the first minutes on a GPU, without one: dry runs, limits, what is kept when a step fails."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_run
from benchmarks.gpu_check import FAILED, NOT_APPLICABLE, PASSED, TIMED_OUT
from benchmarks.gpu_run import MINUTES, PLANS, Step, main, run_step
from benchmarks.rows import ROOT, load_rows

# All that PyTorch does not require, but NumPy, which comes with it on every GPU machine.
HIDDEN = (
    "accelerate", "diffusers", "filelock", "flash_attn", "jinja2", "liger_kernel", "matplotlib", "medmnist", "PIL",
    "pynvml", "pytest", "rich", "safetensors", "sklearn", "torchcfm", "torchdiffeq", "torchmetrics", "torchode",
    "torchvision", "triton", "typer", "xformers", "zuko",
)  # fmt: skip
HIDING = f"""
from importlib.machinery import PathFinder
find_spec = PathFinder.find_spec
def find_others(name, *arguments):
    return None if name.partition(".")[0] in {HIDDEN!r} else find_spec(name, *arguments)
PathFinder.find_spec = staticmethod(find_others)
"""


@pytest.mark.slow
@pytest.mark.parametrize("plan", list(PLANS))
def test_a_dry_run_passes_with_every_optional_package_hidden(plan, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDING)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join([str(tmp_path), *filter(None, [environment.get("PYTHONPATH")])])
    environment |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MSF_BUILD_NATIVE": "0"}
    command = [sys.executable, "-m", "benchmarks.gpu_run", plan, "--dry-run", "--out", str(tmp_path / "out")]
    # What the build makes would take the place of what is here.
    command += ["--steps", *(step.name for step in PLANS[plan] if step.name != "build")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    _, *steps = (json.loads(line) for line in (tmp_path / "out" / f"gpu-{plan}.jsonl").read_text().splitlines())
    status = {step["step"]: step["status"] for step in steps}
    assert set(status.values()) <= {PASSED, NOT_APPLICABLE}
    lacking = {"first": {"compile"}, "second": {"energy", "training", "latent-s1024"}}[plan]
    assert {name for name, value in status.items() if value == NOT_APPLICABLE} == lacking
    for name in {"first": ("limits", "captured", "sweep", "compiled", "profile"), "second": ("max-autotune",)}[plan]:
        rows = load_rows(tmp_path / "out" / f"{name}.jsonl")
        assert any(row.median is not None for row in rows), name


def test_the_first_plan_fits_into_its_minutes_and_no_step_is_without_a_limit():
    assert sum(step.limit for step in PLANS["first"]) <= 60 * MINUTES["first"] == 480
    assert all(0 < step.limit <= 180 for plan in PLANS.values() for step in plan)
    for plan in PLANS.values():
        names = [step.name for step in plan]
        assert len(set(names)) == len(names)
    order = [step.name for step in PLANS["first"]]
    assert order.index("build") < order.index("selftest-capture") < order.index("compile") < order.index("tune")
    assert order.index("sweep") < order.index("tune") < order.index("sweep-tuned")


def test_a_step_that_hangs_is_ended_and_what_it_wrote_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    (tmp_path / "hangs.py").write_text(
        "import pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text('known')\ntime.sleep(60)\n"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    step = Step("hangs", "hangs", ("{rows}",), (), limit=3)
    outcome = run_step(step, tmp_path, time.monotonic() + 100, is_dry=False)
    assert (outcome.status, outcome.note) == (TIMED_OUT, "its 3 s were up; what it had measured is kept")
    assert (tmp_path / "hangs.jsonl").read_text() == "known"
    assert run_step(step, tmp_path, time.monotonic() - 1, is_dry=False).note == "no time was left for it"


def test_steps_go_on_after_a_failure_and_every_line_is_written_when_it_is_known(tmp_path, monkeypatch, capsys):
    seen = []

    def run(command, **_options):
        seen.append(len((tmp_path / "gpu-first.jsonl").read_text().splitlines()))  # the machine, and the steps before
        return SimpleNamespace(returncode=int(len(seen) == 1))

    needs = {"a": (), "b": ("no_such_package",), "c": ()}
    steps = tuple(Step(name, "x", (), (), 5, packages) for name, packages in needs.items())
    monkeypatch.setattr(gpu_run, "PLANS", {"first": steps, "second": ()})
    monkeypatch.setattr(gpu_run.subprocess, "run", run)
    assert main(["first", "--dry-run", "--out", str(tmp_path)]) == 1
    assert seen == [1, 3]
    _, *lines = (json.loads(line) for line in (tmp_path / "gpu-first.jsonl").read_text().splitlines())
    assert [line["status"] for line in lines] == [FAILED, NOT_APPLICABLE, PASSED]
    printed = capsys.readouterr().out
    assert "exit code 1" in printed
    assert "needs no_such_package" in printed


def test_bad_arguments_and_a_missing_gpu_are_one_line_and_exit_code_two(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["first", "--dry-run", "--steps", "sweeep", "--out", str(tmp_path)]) == 2
    assert "--steps must be among limits, build" in capsys.readouterr().err
    assert main(["second", "--out", str(tmp_path)]) == 2
    assert "there is no CUDA device on this machine, so nothing was run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_makefile_runs_them():
    text = (ROOT / "Makefile").read_text()
    assert "gpu-first gpu-second:" in text
    assert "-m benchmarks.gpu_run $(@:gpu-%=%)" in text
