"""The benchmark of a GPU without one: its parts on the CPU with tiny sizes, its rows, its refusals."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

import msf.network.layers
from benchmarks import gpu_bench
from benchmarks.context import Context
from benchmarks.registry import Comparison
from benchmarks.rows import OURS, RowWriter, load_rows

CPU = torch.device("cpu")


@pytest.fixture
def context(monkeypatch):
    """A dry run's context; the plain network gets back the operators that a dry run takes from it."""
    for name in ("group_norm_silu", "spatial_attention"):
        monkeypatch.setattr(msf.network.layers, name, vars(msf.network.layers)[name])
    monkeypatch.setattr(gpu_bench, "DRY_MICRO_BATCHES", (2,))
    return Context(CPU, RowWriter("gpu", CPU, "dry run"), quick=True)


@pytest.mark.parametrize("part", list(gpu_bench.PARTS))
def test_every_part_runs_on_a_cpu_and_its_variants_agree(part, context):
    kept = []
    n_failed = gpu_bench.measure_part(part, context, lambda: kept.append(len(context.writer.rows)))
    assert n_failed == 0
    assert kept[-1] == len(context.writer.rows)
    metrics = {row.metric for row in context.writer.rows}
    assert {"copy_bandwidth", "time"} <= metrics
    peers = {"operators": "eager", "sweep": "eager", "compiled": "compile"}
    assert f"speedup_vs:{peers[part]}" in metrics
    assert ("rate" in metrics) == (part != "operators")
    assert ("compilation" in metrics) == (part == "compiled")


def test_the_peers_network_is_ours_with_pytorchs_operators(context):
    z = gpu_bench.make_state(context, 2)
    expected = gpu_bench.make_network(context)(z, 1.0)
    assert expected.abs().mean() > 1e-3
    ours = msf.network.layers.group_norm_silu
    with gpu_bench.pytorchs_operators():
        assert vars(msf.network.layers)["group_norm_silu"] is gpu_bench.pytorch_group_norm_silu
        torch.testing.assert_close(gpu_bench.make_network(context)(z, 1.0), expected, rtol=1e-4, atol=1e-5)
    assert vars(msf.network.layers)["group_norm_silu"] is ours


def test_the_sweep_goes_from_16_to_1024_and_every_size_is_a_job_with_the_goal():
    jobs = gpu_bench.part_jobs("sweep", is_dry=False)
    assert [job.n_items for job in jobs] == [16, 32, 64, 128, 256, 512, 1024]
    assert all(job.goals == {"eager": 1.5} for job in jobs)
    assert {job.n_items for job in gpu_bench.part_jobs("compiled", is_dry=False)} <= {job.n_items for job in jobs}
    assert jobs[0].work.flops == pytest.approx(16 * 11.61e9)


def test_a_job_that_fails_is_a_row_and_the_others_go_on(context, monkeypatch):
    (job,) = gpu_bench.network_jobs((2,))

    def fails(_context):
        raise RuntimeError("no kernel")

    broken = dataclasses.replace(job, name="broken", variants={OURS: fails})
    monkeypatch.setattr(gpu_bench, "part_jobs", lambda *_: [broken, job])
    assert gpu_bench.measure_part("sweep", context, lambda: None) == 1
    notes = [row.note for row in context.writer.rows if row.job == "broken"]
    assert any("not timed, because it failed: RuntimeError: no kernel" in note for note in notes)
    assert any(row.job == job.name and row.median for row in context.writer.rows)


def test_energy_is_stated_per_thousand_evaluations(context):
    (job,) = gpu_bench.network_jobs((4,))
    context.writer.add(job.name, OURS, "energy", "J", [0.5])
    gpu_bench.add_energy_per_thousand(context.writer, 0, job)
    row = context.writer.rows[-1]
    assert (row.metric, row.unit, row.median) == ("energy_per_1000_evaluations", "J", 125.0)
    assert isinstance(job, Comparison)


def options(**changes):
    return SimpleNamespace(**{"parts": ["sweep"], "minutes": 1.0, "dry_run": True, **changes})


def test_rows_of_a_part_that_ran_out_of_time_are_kept_and_the_rest_is_said_to_be_missing(monkeypatch, capsys):
    writer, of_part = RowWriter("gpu", CPU), RowWriter("gpu", CPU)
    of_part.add("latent-mb16", OURS, "time", "ms", [1.0])

    def part_that_hangs(command, timeout, check):
        of_part.write(gpu_bench.Path(command[command.index("--rows") + 1]))
        raise gpu_bench.subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu_bench.subprocess, "run", part_that_hangs)
    rows, n_bad = gpu_bench.run_parts(options(parts=["operators", "sweep"]), writer)
    assert n_bad == 0
    assert [row.job for row in rows] == ["latent-mb16", "operators", "latent-mb16", "sweep"]
    assert "share of the time" in rows[1].note
    assert rows[1].median is None
    assert "operators: the part's share of the time" in capsys.readouterr().err


def test_a_part_that_fails_is_counted(monkeypatch):
    writer = RowWriter("gpu", CPU)
    monkeypatch.setattr(gpu_bench.subprocess, "run", lambda *_a, **_k: SimpleNamespace(returncode=1))
    rows, n_bad = gpu_bench.run_parts(options(), writer)
    assert n_bad == 1
    assert "the part ended with exit code 1" in rows[0].note


@pytest.mark.slow
def test_the_command_writes_rows_of_every_part(tmp_path):
    assert gpu_bench.main(["--dry-run", "--parts", "sweep", "--out", str(tmp_path), "--minutes", "5"]) == 0
    rows = load_rows(tmp_path / "gpu-bench-dry-run.jsonl")
    assert {row.job for row in rows} >= {"latent-mb2", "latent-mb4"}
    assert all("dry run: tiny sizes, no measurement" in row.note for row in rows)


def test_without_a_gpu_the_command_says_so_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_bench.main(["--out", str(tmp_path)]) == 2
    assert "there is no CUDA device on this machine, so nothing was measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
