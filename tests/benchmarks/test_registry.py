import pytest
import torch

from benchmarks import registry
from benchmarks.agreement import close_in_rms, same_decisions, same_numbers
from benchmarks.context import Context, Limits
from benchmarks.limits import measure_limits
from benchmarks.peers import Unavailable
from benchmarks.registry import Comparison, Subject, Work, jobs, verdicts
from benchmarks.rows import ROOT, RowWriter
from benchmarks.timing import Part, Plan

CPU = torch.device("cpu")


@pytest.fixture
def context():
    return Context(CPU, RowWriter("ops", CPU), rounds=3)


def comparison(variants, **settings):
    plan = Plan(warm_up_seconds=0.0, sample_seconds=0.0)
    return Comparison(suite="ops", name="job", note="note", tests=(), variants=variants, plan=plan, **settings)


def metrics(context):
    return [(row.variant, row.metric) for row in context.writer.rows]


def test_names_are_unique_and_every_test_of_a_job_exists():
    found = list(jobs())
    assert len({job.name for job in found}) == len(found)
    assert {job.suite for job in found} == set(registry.SUITES)
    for job in found:
        assert job.tests
        for test in job.tests:
            assert (ROOT / test.partition("::")[0]).exists(), f"{job.name}: {test}"


def test_the_jobs_that_tools_look_for_are_there():
    assert {
        "latent-evaluation-mb16", "pixel-evaluation-mb16", "latent-uncertainty-s32-1step",
        "pixel-uncertainty-s64-1step", "solver-heun25-linear", "latent-generate-64-25step",
    } <= {job.name for job in jobs()}  # fmt: skip


def test_ours_and_every_peer_have_times_and_ours_a_speedup_over_each(context):
    comparison({"ours": lambda c: lambda: torch.ones(2), "peer": lambda c: lambda: torch.ones(2)}).measure(context)
    assert metrics(context) == [("ours", "time"), ("peer", "time"), ("ours", "speedup_vs:peer")]
    assert all(row.n == 3 for row in context.writer.rows)


def test_a_peer_that_cannot_run_or_fails_is_a_row_with_the_reason(context):
    def missing(context):
        raise Unavailable("needs a GPU")

    def failing(context):
        return lambda: torch.ones(2) @ torch.ones(3)

    comparison({"ours": lambda c: lambda: torch.ones(2), "missing": missing, "failing": failing}).measure(context)
    first, second, *rest = context.writer.rows
    assert (first.variant, first.median, first.note) == ("missing", None, "needs a GPU")
    assert (second.variant, second.median) == ("failing", None)
    assert second.note.startswith("fails: RuntimeError")
    assert [(row.variant, row.metric) for row in rest] == [("ours", "time")]


def test_our_own_failure_is_not_hidden(context):
    with pytest.raises(RuntimeError):
        comparison({"ours": lambda c: lambda: torch.ones(2) @ torch.ones(3)}).measure(context)


def test_variants_that_disagree_are_not_timed(context):
    job = comparison(
        {"ours": lambda c: lambda: torch.zeros(2), "peer": lambda c: lambda: torch.ones(2)}, agree=same_numbers(1e-3)
    )
    with pytest.raises(AssertionError, match="job: peer disagrees with ours"):
        job.measure(context)
    with pytest.raises(AssertionError, match="job: peer disagrees with ours"):
        job.check(context)
    assert context.writer.rows == []


def test_a_wrong_peer_is_a_row_and_the_others_are_timed(context):
    variants = {
        "ours": lambda c: lambda: torch.ones(2),
        "authors": lambda c: lambda: torch.ones(2),
        "broken": lambda c: lambda: torch.full((2,), float("nan")),
        "other": lambda c: lambda: torch.ones(2),
    }
    comparison(variants, agree=same_numbers(1e-3)).measure(context)
    rows = {(row.variant, row.metric): row for row in context.writer.rows}
    assert rows["broken", "time"].median is None
    assert rows["broken", "time"].note.startswith("not timed: its result is wrong: Tensor-likes are not close")
    assert rows["broken", "time"].note.endswith("authors agrees with ours")
    assert {variant for variant, metric in rows if metric == "time"} == {"ours", "authors", "broken", "other"}
    assert all(rows[name, "time"].n == 3 for name in ("ours", "authors", "other"))
    assert {metric for _, metric in rows if metric.startswith("speedup")} == {
        "speedup_vs:authors",
        "speedup_vs:other",
    }


def test_a_wrong_variant_of_ours_is_never_only_a_row(context):
    variants = {
        "ours": lambda c: lambda: torch.ones(2),
        "authors": lambda c: lambda: torch.ones(2),
        "ours-without-norm": lambda c: lambda: torch.zeros(2),
    }
    with pytest.raises(AssertionError, match="job: ours-without-norm disagrees with ours"):
        comparison(variants, agree=same_numbers(1e-3)).measure(context)


def test_a_variant_in_parts_counts_each_by_its_weight(context):
    now = 0.0

    def takes(seconds):
        def call():
            nonlocal now
            now += seconds

        return call

    context.clock = lambda: now
    parts = [Part(takes(1.0)), Part(takes(0.5), weight=16)]
    comparison({"ours": lambda c: Subject(parts, note="1 of 16 timed")}, unit="s", n_items=3).measure(context)
    time, rate = context.writer.rows
    assert (time.median, time.metric, time.note) == (9.0, "processor time", "note; 1 of 16 timed")
    assert (rate.median, rate.unit) == (pytest.approx(1 / 3), "samples/s")


def test_the_share_of_the_limit_is_that_of_the_slower_resource(context):
    context.limits = Limits(bytes_per_second=100.0, flops_per_second={torch.float32: 1000.0})
    assert context.limits.least_seconds(1000.0, 1.0, torch.float32) == 1.0
    assert context.limits.least_seconds(1.0, 300.0, torch.float32) == 3.0
    assert context.limits.least_seconds(1.0, 300.0, torch.float16) is None
    now = 0.0

    def call():
        nonlocal now
        now += 6.0

    context.clock = lambda: now
    comparison({"ours": lambda c: call}, unit="s", work=Work(1.0, 300.0)).measure(context)
    shares = [row.median for row in context.writer.rows if row.metric == "share_of_limit"]
    assert shares == [0.5]


def test_limits_are_measured_and_rows_of_the_machine():
    context = Context(CPU, RowWriter("ops", CPU), quick=True)
    limits = measure_limits(context)
    assert limits.bytes_per_second > 0
    assert {row.variant for row in context.writer.rows} == {"machine"}
    assert {row.metric for row in context.writer.rows} == {"copy_bandwidth", "matmul_float32", "matmul_bfloat16"}


def test_a_goal_is_met_by_the_median(context):
    job = comparison({}, goals={"peer": 1.5})
    for peer_seconds, line in (([3.0], "met (3.00x)"), ([1.0], "MISSED (1.00x)"), ([], "not measured")):
        context.writer.rows.clear()
        if peer_seconds:
            context.writer.add_speedups("job", {"ours": [1.0], "peer": peer_seconds}, {})
        assert verdicts([job], context.writer) == [f"goal job: at least 1.5x peer: {line}"]


def test_decisions_agree_by_their_share_and_the_distance_is_stated():
    ours = {"label": torch.tensor([0, 1, 1, 0]), "distance": torch.zeros(4, 2)}
    peer = {"label": torch.tensor([0, 1, 0]), "distance": torch.full((3, 2), 0.25)}
    stated = {metric: value for metric, _, value in same_decisions(0.6)(ours, peer)}
    assert stated == {"label_agreement": pytest.approx(2 / 3), "distance_difference": 0.25}
    with pytest.raises(AssertionError, match=r"0\.667 of the labels are equal"):
        list(same_decisions(0.7)(ours, peer))


def test_low_precision_agrees_in_rms():
    exact = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    (stated,) = close_in_rms(0.01)(exact.bfloat16(), exact)
    assert 0 < stated[2] < 0.01
    with pytest.raises(AssertionError, match="relative RMS difference"):
        list(close_in_rms(0.01)(1.02 * exact, exact))
    with pytest.raises(AssertionError, match="nan"):
        list(close_in_rms(0.01)(exact * float("nan"), exact))
