from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.compare import compare
from benchmarks.context import Context
from benchmarks.registry import Comparison
from benchmarks.rows import RowWriter, quantile
from benchmarks.timing import Plan

CPU = torch.device("cpu")


def noisy(generator, *, seconds, spread, n):
    """Times of a machine with neighbours: never faster than it can be, sometimes much slower."""
    noise = torch.rand(n, generator=generator).square() * spread
    stalls = (torch.rand(n, generator=generator) < 0.05) * 0.5
    return (seconds * (1 + noise + stalls)).tolist()


def run_of(seed, *, ours=1.0, drift=1.0, n=21, spread=0.05, with_peer=True):
    generator = torch.Generator().manual_seed(seed)
    writer = RowWriter("ops", CPU)
    for job in range(10):
        writer.add(f"job-{job}", "ours", "time", "ms", noisy(generator, seconds=ours * drift, spread=spread, n=n))
        if with_peer:
            writer.add(f"job-{job}", "authors", "time", "ms", noisy(generator, seconds=3 * drift, spread=spread, n=n))
    return writer.rows


def verdicts(before, after):
    return [change.verdict for change in compare(before, after)]


@pytest.mark.parametrize("seed", range(10))
def test_two_runs_of_the_same_code_are_the_same(seed):
    assert verdicts(run_of(2 * seed), run_of(2 * seed + 1)) == ["same"] * 10


@pytest.mark.parametrize("seed", range(10))
def test_a_slowdown_of_fifteen_percent_is_found_in_every_job(seed):
    assert verdicts(run_of(2 * seed), run_of(2 * seed + 1, ours=1.15)) == ["worse"] * 10
    assert verdicts(run_of(2 * seed, ours=1.15), run_of(2 * seed + 1)) == ["better"] * 10


def test_a_machine_that_became_slower_is_no_regression_where_peers_show_it():
    assert verdicts(run_of(0), run_of(1, drift=1.3)) == ["same"] * 10
    assert verdicts(run_of(0), run_of(1, drift=1.3, ours=1.15)) == ["worse"] * 10
    assert verdicts(run_of(0, with_peer=False), run_of(1, drift=1.3, with_peer=False)) == ["worse"] * 10


def curve(*, median):
    writer = RowWriter("scaling", CPU)
    writer.add("samples-s16", "ours", "cost_per_sample", "ms", [1.0] * 5)
    writer.add("samples", "ours", "largest_over_smallest", "ratio", [median])
    return writer.rows


def test_statements_about_a_run_are_not_compared():
    assert verdicts(curve(median=1.5), curve(median=2.5)) == ["same"]


def test_figures_of_a_job_that_failed_are_lost_whatever_they_measured():
    writer = RowWriter("scaling", CPU)
    writer.add("samples", "ours", "time", "us", [], "not timed, because a check failed")
    writer.add("other", "ours", "time", "us", [1.0] * 5)
    before = [*curve(median=1.5), writer.rows[1]]
    assert verdicts(before, writer.rows) == ["same", "lost"]


def test_figures_of_a_job_that_was_not_run_again_are_not_lost():
    writer = RowWriter("scaling", CPU)
    writer.add("other", "ours", "time", "us", [1.0] * 5)
    assert verdicts([*curve(median=1.5), *writer.rows], writer.rows) == ["same"]


def test_forms_of_ours_are_no_measure_of_the_machine():
    def run(seconds):
        writer = RowWriter("network", CPU)
        for variant in ("ours", "ours-without-fused_norm"):
            writer.add("ablation", variant, "time", "ms", [seconds] * 7)
        return writer.rows

    assert verdicts(run(200.0), run(400.0)) == ["worse"]


def test_a_peer_that_moved_alone_is_no_measure_of_the_machine():
    later = run_of(1)
    moved = [
        replace(row, median=row.median / 2.5, p20=row.p20 / 2.5, p80=row.p80 / 2.5)
        if (row.job, row.variant) == ("job-3", "authors")
        else row
        for row in later
    ]
    assert verdicts(run_of(0), moved) == ["same"] * 10


def test_peers_of_another_version_are_no_measure_of_the_machine():
    later = [replace(row, versions={**row.versions, "torch": "9.9"}) for row in run_of(1, drift=1.3)]
    assert verdicts(run_of(0), later) == ["worse"] * 10


def test_few_samples_need_twice_the_change():
    quiet = {"n": 3, "spread": 0.001}
    assert "worse" not in verdicts(run_of(0, **quiet), run_of(1, ours=1.15, **quiet))
    assert verdicts(run_of(2, **quiet), run_of(3, ours=1.4, **quiet)).count("worse") >= 8


def test_overlapping_intervals_are_the_same_however_far_the_medians_are_apart():
    writer = RowWriter("ops", CPU)
    before = writer.add("job", "ours", "time", "ms", [1.0, 1.0, 1.0, 1.0, 2.0, 2.0])
    after = writer.add("job", "ours", "time", "ms", [1.0, 1.9, 2.0, 2.0, 2.0, 2.0])
    assert quantile([1.0, 1.0, 1.0, 1.0, 2.0, 2.0], 0.8) == 2.0
    assert verdicts([before], [after]) == ["same"]


def test_a_rate_is_worse_when_it_falls():
    writer = RowWriter("ops", CPU)
    before = writer.add("machine", "ours", "bandwidth", "GB/s", [10.0] * 9)
    after = writer.add("machine", "ours", "bandwidth", "GB/s", [8.0] * 9)
    assert verdicts([before], [after]) == ["worse"]
    assert verdicts([after], [before]) == ["better"]


def test_what_is_not_measured_any_more_is_lost():
    writer = RowWriter("ops", CPU)
    before = writer.add("job", "ours", "time", "ms", [1.0] * 9)
    after = writer.add("job", "ours", "time", "ms", [], "not timed, because a check failed")
    (change,) = compare([before], [after])
    assert str(change) == "lost    job time: not timed, because a check failed"


def test_the_command_exits_with_one_for_a_regression_and_two_for_files_without_rows(tmp_path, capsys):
    files = []
    for name, rows in (("a", run_of(0)), ("b", run_of(1)), ("slow", run_of(2, ours=1.15))):
        files.append(str(tmp_path / f"{name}.jsonl"))
        RowWriter("ops", CPU).write(Path(files[-1]), rows)
    assert main(["compare", files[0], files[1]]) == 0
    assert capsys.readouterr().out == "0 worse, 0 lost, 0 better, 10 same\n"
    assert main(["compare", files[0], files[2]]) == 1
    assert "worse   job-0 time: +1" in capsys.readouterr().out
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    assert main(["compare", files[0], str(tmp_path / "other.jsonl")]) == 2


class Work:
    """A machine whose clock is moved on by work alone, with the noise of `noisy`."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.now = 0.0

    def clock(self):
        return self.now

    def multiply(self, times):
        self.now += noisy(self.generator, seconds=1e-4 * times, spread=0.05, n=1)[0]


def measured(path, seed, n_ours):
    """Measure a job that does `n_ours` pieces of work beside one that does a hundred."""
    work = Work(seed)
    job = Comparison(
        suite="ops",
        name="matmuls",
        note="",
        tests=(),
        plan=Plan(n_rounds=21, warm_up_seconds=0.1, sample_seconds=0.02),
        variants={
            "ours": lambda context: lambda: work.multiply(n_ours),
            "fixed": lambda context: lambda: work.multiply(100),
        },
    )
    context = Context(CPU, RowWriter("ops", CPU), clock=work.clock)
    job.measure(context)
    context.writer.write(path)
    return [row.metric for row in context.writer.rows if row.variant == "ours"]


@pytest.mark.parametrize("seed", range(5))
def test_an_injected_slowdown_is_found_and_a_second_run_of_the_same_code_is_not(seed, tmp_path):
    files = [tmp_path / f"{run}.jsonl" for run in range(3)]
    for run, n_ours in enumerate((100, 100, 115)):
        assert measured(files[run], 3 * seed + run, n_ours) == ["processor time", "speedup_vs:fixed"]
    assert main(["compare", str(files[0]), str(files[1])]) == 0
    assert main(["compare", str(files[0]), str(files[2])]) == 1
