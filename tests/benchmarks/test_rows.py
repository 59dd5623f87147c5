import json

import pytest
import torch

from benchmarks.rows import RowWriter, commit, quantile

FIELDS = [
    "suite", "job", "variant", "metric", "unit", "median", "p20", "p80", "n", "machine", "device", "versions", "commit",
    "note",
]  # fmt: skip


@pytest.fixture
def writer():
    return RowWriter("ops", torch.device("cpu"))


def test_a_row_has_every_field_of_the_contract(writer, tmp_path):
    writer.add("job", "ours", "time", "us", [3.0, 1.0, 2.0], "a note")
    path = tmp_path / "rows.jsonl"
    writer.write(path)
    (row,) = map(json.loads, path.read_text().splitlines())
    assert list(row) == FIELDS
    assert (row["suite"], row["median"], row["n"], row["device"], row["note"]) == ("ops", 2.0, 3, "cpu", "a note")
    assert row["versions"]["torch"] == torch.__version__
    assert f"{torch.get_num_threads()} threads" in row["machine"]
    assert row["commit"] == commit() != ""


def test_quantiles_interpolate():
    assert [quantile([0.0, 1.0, 2.0, 3.0, 4.0], q) for q in (0.0, 0.2, 0.5, 0.8, 1.0)] == pytest.approx(
        [0.0, 0.8, 2.0, 3.2, 4.0]
    )
    assert quantile([7.0], 0.8) == 7.0


def test_a_speedup_is_taken_round_by_round_for_every_peer(writer):
    seconds = {"ours": [1.0, 2.0, 4.0], "slow": [3.0, 6.0, 12.0], "fast": [0.5, 1.0, 2.0]}
    writer.add_speedups("job", seconds, {"slow": "2 of 32 samples timed"})
    assert [row.note for row in writer.rows] == ["2 of 32 samples timed", ""]
    assert [(row.variant, row.metric, row.median, row.p20, row.p80) for row in writer.rows] == [
        ("ours", "speedup_vs:slow", 3.0, 3.0, 3.0),
        ("ours", "speedup_vs:fast", 0.5, 0.5, 0.5),
    ]


def test_what_could_not_run_is_a_row_with_the_reason(writer):
    row = writer.add("job", "peer", "time", "us", [], "not installed")
    assert (row.median, row.p20, row.p80, row.n) == (None, None, None, 0)
    assert "not measured: not installed" in writer.table()
