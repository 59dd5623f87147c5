import json
import time

import pytest

from benchmarks import operators_cpu
from benchmarks.operators_cpu import Job, jobs, main, measure, verdicts
from benchmarks.rows import RowWriter
from benchmarks.timing import Plan

QUICK = Plan(n_rounds=3, warm_up_seconds=0.0, sample_seconds=0.0)


@pytest.fixture
def writer():
    return RowWriter("ops", operators_cpu.CPU)


@pytest.mark.parametrize("job", list(jobs()), ids=lambda job: job.name)
def test_every_job_agrees_with_its_peers_and_gives_its_rows(job, writer, need_backend):
    need_backend(job.operator, "native")
    measure(job, QUICK, writer)
    metrics = [(row.variant, row.metric) for row in writer.rows]
    (peer,) = [name for name in job.variants if name != "ours"]
    last = ("ours", f"boundary_over:{peer}" if job.is_boundary else f"speedup_vs:{peer}")
    assert metrics == [("ours", "time"), (peer, "time"), last]
    assert all(row.n == 3 for row in writer.rows)


def test_without_the_native_backend_the_reason_is_a_row(writer, monkeypatch):
    monkeypatch.setattr(operators_cpu, "BACKEND", "abacus")
    measure(next(jobs()), QUICK, writer)
    (row,) = writer.rows
    assert row.median is None
    assert row.note == "group_norm_silu has no abacus backend"


def test_a_variant_that_computes_something_else_is_not_timed(writer, need_backend):
    job = next(job for job in jobs() if job.name == "rk-combine-heun")
    need_backend(job.operator, "native")
    wrong = Job(job.name, job.operator, {**job.variants, "eager": lambda: job.variants["eager"]() + 1}, job.note)
    with pytest.raises(AssertionError, match="rk-combine-heun: eager disagrees"):
        measure(wrong, QUICK, writer)


@pytest.mark.parametrize(("peer_seconds", "state"), [([3.0], "met"), ([1.0], "MISSED"), ([], "not measured")])
def test_a_goal_is_met_by_the_median(writer, peer_seconds, state):
    job = Job("job", "rk_combine", {}, "", goals={"peer": 1.5})
    if peer_seconds:
        writer.add_speedups("job", {"ours": [1.0], "peer": peer_seconds})
    assert verdicts([job], writer) == [f"goal job: at least 1.5x peer: {state}"]


def test_the_command_writes_rows(tmp_path, need_backend, capsys):
    need_backend("rk_combine", "native")
    path = tmp_path / "rows.jsonl"
    flags = ["--only", "boundary-rk-combine", "--rounds", "2", "--threads", "1", "--clock", "cpu", "--out", str(path)]
    assert main(flags) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["metric"] for row in rows] == ["processor time", "processor time", "boundary_over:torch.add"]
    assert "boundary-rk-combine" in capsys.readouterr().out
    assert operators_cpu.CLOCKS["cpu"] is time.process_time


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--threads", "2", "--clock", "cpu"], ["--only", "nothing"]])
def test_bad_arguments_exit_with_two(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert flags[0] in capsys.readouterr().err
