"""`msf tune`, and what `msf info` and the pictures' run file say of precision."""

import json

import pytest

from msf.cli import app
from msf.network.inference import measurement
from msf.precision import Measured, this_processor, user_table, user_table_path


@pytest.fixture
def run(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    monkeypatch.delenv("MSF_PRECISION", raising=False)
    monkeypatch.setenv("MSF_CACHE", str(tmp_path / "cache"))

    def invoke(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)))

    return invoke


@pytest.fixture
def measured(monkeypatch):
    """Replace the minutes of measuring by made-up times; count the calls."""
    calls = []

    def measure(n_rounds):
        calls.append(n_rounds)
        return iter([Measured(width, n, 2.0 * n, 1.0 * n) for width in (64, 128) for n in (1, 4)])

    monkeypatch.setattr(measurement, "measure_precisions", measure)
    return calls


def test_it_measures_once_and_again_when_told(run, measured, tmp_path):
    result = run("tune", "--json", tmp_path / "t.json", "--rounds", 3)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["processor"] == this_processor().key
    assert content["file"] == str(user_table_path())
    assert [row["micro_batch"] for row in content["rows"]] == [1, 4, 1, 4]
    assert len(user_table()[this_processor().key]) == 4
    assert run("tune").exit_code == 0
    assert measured == [3]
    assert run("tune", "--replace").exit_code == 0
    assert measured == [3, 7]


def test_a_file_that_is_none_of_its_own_is_refused_and_stays(run, measured):
    user_table_path().parent.mkdir()
    user_table_path().write_text("{}")
    result = run("tune")
    assert isinstance(result.exception, ValueError)
    assert "msf tune --replace" in str(result.exception)
    assert measured == []
    info = run("info")
    assert info.exit_code == 0
    assert str(user_table_path()) in info.output
    assert run("tune", "--replace").exit_code == 0
    assert measured == [7]


def test_it_measures_cpus_only(run, measured):
    assert "device must be cpu" in str(run("tune", "--device", "cuda").exception)


@pytest.mark.slow
def test_what_is_measured_is_a_row_per_network_and_size():
    (row,) = measurement.measure_precisions(1, recipes=("published-28",), micro_batches=(1,))
    assert (row.base_channels, row.micro_batch) == (64, 1)
    assert row.fp32 > 0
    assert row.bf16 > 0
