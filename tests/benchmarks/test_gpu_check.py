import json
import sys
import time

import pytest
import torch

from benchmarks import gpu_check
from benchmarks.gpu_check import Job, Outcome, build_job, failures, main, run_job, sanitizer_job, selftest_jobs
from msf_kernels import backends

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


def soon(seconds=60.0):
    return time.monotonic() + seconds


@no_gpu
def test_without_a_gpu_it_says_so_in_one_sentence_and_exits_with_two(capsys):
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.err == "gpu-check: there is no CUDA device on this machine, so nothing was checked\n"
    assert printed.out == ""


def test_on_a_cpu_the_steps_run_and_the_rest_is_said_not_to_apply(tmp_path):
    steps = ["selftest", "capture", "pytest", "sanitizer"]
    flags = ["--device", "cpu", "--op", "philox_words", "--seeds", "0", "--out", str(tmp_path), "--steps", *steps]
    assert main(flags) == 0
    report = json.loads((tmp_path / "gpu-check-cpu.json").read_text())
    assert report["passed"]
    assert report["failures"] == []
    status = {step["step"]: step["status"] for step in report["steps"]}
    assert status == dict.fromkeys(["capture", "pytest", "sanitizer"], "not applicable") | {"selftest": "passed"}
    assert {row["step"] for row in report["rows"]} == {"selftest"}
    assert {row["operator"] for row in report["rows"]} == {"philox_words"}
    assert report["versions"]["torch"] == torch.__version__
    assert report["commit"]


def test_a_failure_anywhere_is_exit_code_one_and_named(tmp_path, monkeypatch, capsys):
    broken = Job("selftest", "rk_combine", [sys.executable, "-c", "print('a kernel broke'); raise SystemExit(3)"])
    monkeypatch.setattr(gpu_check, "selftest_jobs", lambda *args: [broken])
    assert main(["--device", "cpu", "--steps", "selftest", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu-check-cpu.json").read_text())
    assert not report["passed"]
    assert report["failures"] == ["selftest rk_combine failed: exit code 3\na kernel broke"]
    assert "FAILED selftest rk_combine failed: exit code 3" in capsys.readouterr().out


def test_a_job_that_outlives_the_check_is_stopped():
    started = time.monotonic()
    outcome = run_job(Job("selftest", "slow", [sys.executable, "-c", "import time; time.sleep(60)"]), soon(0.5))
    assert outcome.status == "timed out"
    assert time.monotonic() - started < 30
    assert failures([outcome]) == ["selftest slow timed out: the time of the whole check was up"]


def test_rows_of_a_failed_selftest_are_kept_and_counted(tmp_path):
    report = tmp_path / "rows.json"
    row = {"operator": "rk_combine", "backend": "triton", "dtype": "bfloat16", "case": "tiny", "output": "output 0"}
    rows = [{**row, "verdict": "pass", "note": ""}, {**row, "verdict": "fail", "note": "too wrong"}]
    report.write_text(json.dumps({"rows": rows}))
    command = [sys.executable, "-c", "raise SystemExit(1)"]
    outcome = run_job(Job("capture", "rk_combine", command, report=report), soon())
    assert outcome.status == "failed"
    assert [kept["step"] for kept in outcome.rows] == ["capture", "capture"]
    assert failures([outcome]) == ["capture rk_combine triton bfloat16 tiny output 0: too wrong"]


@pytest.mark.parametrize(
    ("step", "code", "output", "status"),
    [
        ("pytest", 5, "no tests ran", "not applicable"),
        ("pytest", 1, "1 failed", "failed"),
        ("sanitizer", 1, "Error: Device not supported", "not applicable"),
        ("sanitizer", 86, "ERROR SUMMARY: 3 errors", "failed"),
        ("sanitizer", 0, "ERROR SUMMARY: 0 errors", "passed"),
    ],
)
def test_exit_codes_of_the_tools_are_understood(step, code, output, status):
    command = [sys.executable, "-c", f"print({output!r}); raise SystemExit({code})"]
    assert run_job(Job(step, "tool", command), soon()).status == status


def test_a_gpu_check_covers_every_operator_three_ways(tmp_path):
    jobs = list(selftest_jobs(sorted(backends()), torch.device("cuda"), 5, tmp_path))
    assert {(job.step, job.subject) for job in jobs} == {
        (step, operator) for step in ("selftest", "compile", "capture") for operator in backends()
    }
    plain = next(job for job in jobs if job.step == "selftest")
    assert "--dtype" not in plain.command  # all of them
    captured = {job.subject: job.command for job in jobs if job.step == "capture"}
    for operator, command in captured.items():
        named = command[command.index("--backend") + 1 : command.index("--seeds")]
        assert set(named) == {"native", "reference", "triton"} & set(backends()[operator])


def test_what_is_missing_on_a_gpu_machine_is_said(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: None)
    cuda = torch.device("cuda")
    assert build_job(cuda).note == "nvcc is not on PATH"
    assert sanitizer_job(cuda).note == "compute-sanitizer is not on PATH"
    assert run_job(sanitizer_job(cuda), soon()) == Outcome(
        "sanitizer", "memcheck", "not applicable", 0.0, "compute-sanitizer is not on PATH"
    )
