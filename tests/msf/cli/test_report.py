"""`msf report`: one file, on the split that was asked for, of what was asked for."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

SCHEMA = Path(__file__).parents[3] / "docs" / "schemas" / "evaluate.schema.json"


@pytest.fixture
def run(msf, tiny_run, tmp_path):
    def report(*arguments):
        out = tmp_path / "page.html"
        code, printed, err = msf("report", tiny_run, "--out", out, "--device", "cpu", *arguments)
        return code, printed, err, out

    return report


def test_a_run_has_its_page(run, tmp_path, tiny_npz):
    code, printed, _, out = run("--json", tmp_path / "r.json", "--generated", 1)
    assert code == 0
    assert f"open {out}" in printed
    page = out.read_text()
    metrics = json.loads((tmp_path / "r.json").read_text())
    assert "split test" in page
    jsonschema.validate(metrics, json.loads(SCHEMA.read_text()))
    assert metrics["provenance"]["checkpoint_sha256"] in page
    assert metrics["dataset_sha256"] in page
    assert "Generated picture 1 of" in page
    assert "Generated picture 2 of" not in page


def test_the_page_says_that_val_chose_the_epoch(run):
    code, _, _, out = run("--split", "val", "--generated", 0, "--score", "margin")
    page = out.read_text()
    assert code == 0
    assert "split val" in page
    assert "chose its best epoch on these pictures" in page
    assert "most uncertain by margin" in page
    assert "Generated picture" not in page


def test_other_data_are_called_so(run, tiny_npz, tmp_path):
    other = tmp_path / "other.npz"
    other.write_bytes(tiny_npz.read_bytes())
    code, _, err, out = run("--data", other, "--split", "train", "--generated", 0, "--n-samples", 1)
    assert code == 0, err
    assert "other data than those that the network was trained with" in out.read_text()


def test_a_calibrated_run_shows_what_its_decisions_come_to(msf, tiny_run, tiny_npz, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path / "run")
    code, _, err = msf("calibrate", folder, "--split", "val", "--device", "cpu")
    assert code == 0, err
    code, _, err = msf("report", folder, "--out", tmp_path / "r.html", "--generated", 0, "--device", "cpu")
    assert code == 0, err
    page = (tmp_path / "r.html").read_text()
    assert 'id="decisions"' in page
    assert "classes per set" in page


def test_the_newest_run_is_taken_where_none_is_named(msf, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(tiny_run)
    code, _, err = msf("report", "--generated", 0)
    assert code == 0
    assert "runs/tiny" in err
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--score", "doubt"), "score must be one of"),
        (("--split", "all"), "split"),
        (("--data", "none.npz"), "none.npz"),
        (("--generated", "-1"), "generated"),
    ],
)
def test_bad_input_is_told_before_the_work(run, arguments, word):
    code, _, err, out = run(*arguments)
    assert code == 2
    assert word in err.splitlines()[-1]
    assert not out.exists()


def test_the_page_does_not_replace_the_data(msf, tiny_run, tiny_npz):
    before = tiny_npz.read_bytes()
    code, _, err = msf("report", tiny_run, "--out", tiny_npz, "--device", "cpu")
    assert code == 2
    assert "--out" in err
    assert tiny_npz.read_bytes() == before
