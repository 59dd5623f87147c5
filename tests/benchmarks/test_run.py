import json

import pytest
import torch

from benchmarks import run, verify
from benchmarks.__main__ import main
from benchmarks.registry import Comparison
from benchmarks.timing import Plan

QUICK = ["--device", "cpu", "--threads", "1", "--quick", "--no-verify"]


@pytest.fixture(autouse=True)
def same_number_of_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def job(name="made-up", tests=(), value=1.0):
    variants = {"ours": lambda c: lambda: torch.ones(2), "peer": lambda c: lambda: torch.full((2,), value)}
    from benchmarks.agreement import same_numbers

    return Comparison(
        suite="ops", name=name, note="", tests=tests, variants=variants, agree=same_numbers(1e-3),
        plan=Plan(warm_up_seconds=0, sample_seconds=0),
    )  # fmt: skip


def test_a_run_writes_limits_and_rows_of_every_chosen_job(tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["run", "--suite", "ops", "--only", "boundary-rk*", "class-distance", *QUICK, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["job"] for row in rows} == {"machine-limits-1-thread", "class-distance", "boundary-rk-combine"}
    assert {row["suite"] for row in rows} == {"ops"}
    assert all("quick run" in row["note"] for row in rows)
    printed = capsys.readouterr().out
    assert "class-distance" in printed
    assert "goal class-distance: at least 10x authors" in printed


def test_the_solver_job_measures_all_its_peers(tmp_path):
    out = tmp_path / "rows.jsonl"
    assert main(["run", "--suite", "solver", "--only", "solver-heun25-linear", *QUICK, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    overheads = {row["variant"]: row["median"] for row in rows if row["metric"] == "overhead"}
    assert set(overheads) == {"ours", "torchdiffeq", "torchode", "diffusers", "zuko"}
    assert overheads["ours"] is not None
    assert overheads["zuko"] is None


def test_a_failing_test_keeps_its_job_from_being_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "jobs", lambda suites: iter([job(tests=("tests/x.py",)), job("other")]))
    monkeypatch.setattr(run, "failing_tests", lambda tests: {"tests/x.py": "tests/x.py::test_a AssertionError"})
    out = tmp_path / "rows.jsonl"
    assert main(["run", "--suite", "ops", *[flag for flag in QUICK if flag != "--no-verify"], "--out", str(out)]) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    times = {row["job"]: row["median"] for row in rows if row["metric"] == "time" and row["variant"] == "ours"}
    assert times["made-up"] is None
    assert times["other"] is not None
    (note,) = [row["note"] for row in rows if row["median"] is None]
    assert "tests/x.py::test_a AssertionError" in note


def test_variants_that_disagree_end_with_one_and_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "jobs", lambda suites: iter([job(value=2.0)]))
    out = tmp_path / "rows.jsonl"
    assert main(["run", "--suite", "ops", *QUICK, "--out", str(out)]) == 1
    last = json.loads(out.read_text().splitlines()[-1])
    assert last["median"] is None
    assert "peer disagrees with ours" in last["note"]


def test_verify_runs_tests_and_compares_without_timing(monkeypatch, capsys):
    monkeypatch.setattr(run, "jobs", lambda suites: iter([job(), job("wrong", value=2.0)]))
    assert main(["verify", "--suite", "ops", "--device", "cpu", "--threads", "1"]) == 1
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("ops")]
    assert first.split() == ["ops", "made-up", "passed"]
    assert "FAILED wrong: peer disagrees with ours" in second


def test_tests_are_run_and_their_failures_named(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "test_good.py").write_text("def test_a():\n    pass\n")
    (tmp_path / "test_bad.py").write_text("def test_a():\n    assert 1 == 2\n\ndef test_b():\n    pass\n")
    assert verify.failing_tests(["test_good.py"]) == {}
    failing = verify.failing_tests(["test_good.py", "test_bad.py"])
    assert list(failing) == ["test_bad.py"]
    assert failing["test_bad.py"].startswith("test_bad.py::test_a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "test_bad.py").rename(tmp_path / "folder" / "test_bad.py")
    assert list(verify.failing_tests(["folder", "test_good.py"])) == ["folder"]
    assert "exit code" in verify.failing_tests(["test_missing.py"])["test_missing.py"]


def test_what_holds_the_processor_back_is_in_every_row_and_not_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "jobs", lambda suites: iter([job()]))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    out = tmp_path / "rows.jsonl"
    assert main(["run", "--suite", "ops", *QUICK, "--out", str(out)]) == 0
    assert all("ONEDNN_MAX_CPU_ISA=AVX2" in json.loads(line)["note"] for line in out.read_text().splitlines())
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--suite", "ops", "--device", "cpu", "--threads", "1", "--save"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "it cannot go with" in error
    assert "ONEDNN_MAX_CPU_ISA" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--only", "nothing"], "no job is called nothing"),
        (["--rounds", "0"], "--rounds must be >= 1; got 0"),
        (["--threads", "0"], "--threads must be >= 1; got 0"),
        (["--threads", "2", "--clock", "cpu"], "--clock cpu needs --threads 1"),
        (["--save", "--out", "x"], "--out and --save cannot both be given"),
        (["--save", "--only", "class-distance"], "it cannot go with --only or --quick"),
    ],
)
def test_bad_arguments_exit_with_two_and_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--suite", "ops", "--device", "cpu", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_jobs_can_be_listed(capsys):
    assert main(["list", "--suite", "end-to-end", "--only", "*uncertainty*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["latent-uncertainty-s32-1step", "pixel-uncertainty-s64-1step"]
