"""Rows of many files: none lost, none computed twice, whatever breaks and whenever it ends."""

import csv
import json
import os
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msf import MedSymmFlow
from msf.cli import classify
from msf.cli.picture_rows import PictureRows
from msf.files.journal import Journal
from tests.msf.data import picture_kinds

BROKEN = (
    "empty file", "text", "half a file", "wrong checksum", "header of a giant", "floating point", "32 bits", "icon",
    "several pages", "packed volume",
)  # fmt: skip


def pictures(folder, n):
    """Write n pictures of several formats, and one broken file of each kind among them."""
    suffixes = (".png", ".jpg", ".bmp", ".tif", ".webp")
    for number in range(n):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 256, (9, 12, 3) if number % 3 else (8, 8), np.uint8)
        path = folder / f"{number % 7}" / f"{number:05}{suffixes[number % len(suffixes)]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    broken = []
    for number, name in enumerate(BROKEN):
        (folder / f"{number % 7}").mkdir(parents=True, exist_ok=True)
        made = picture_kinds.REFUSED[name].make(folder / f"{number % 7}" / f"00{number}-broken")
        for helper in made.parent.glob("*.whole.png"):
            helper.unlink()
        broken.append(made)
    return broken


@pytest.fixture
def run(msf, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: msf("classify", *arguments, "--checkpoint", tiny_run, "--device", "cpu")


def stop_at(monkeypatch, number):
    """Send a signal in a later call of the network; return the sizes of all calls."""
    original, calls, sent = MedSymmFlow.classify, [], []

    def interrupted(self, images, *arguments, **options):
        calls.append(len(images))
        if len(calls) == number and not sent:
            sent.append(number)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(MedSymmFlow, "classify", interrupted)
    return calls


def test_an_interrupted_run_goes_on_with_the_bits_of_an_uninterrupted_one(run, tmp_path, monkeypatch):
    broken = pictures(tmp_path / "d", 120)
    named = ["d", *(path for path in broken if path.suffix in (".gz", ".ico"))]  # which a search of a folder skips
    monkeypatch.setattr(classify, "_FIRST_PART", 16)
    monkeypatch.setattr(classify, "_PART_SECONDS", 0.0)
    assert run(*named, "--csv", "whole.csv", "--json", "whole.json")[0] == 1
    calls = stop_at(monkeypatch, 4)
    code, _, err = run(*named, "--csv", "r.csv", "--json", "r.json")
    assert code == 143
    assert "go on with: msf classify" in err
    n_finished = sum(calls[:3])
    assert not Path("r.csv").exists()
    code, _, err = run(*named, "--csv", "r.csv", "--json", "r.json")
    assert code == 2
    assert "go on with --resume" in err
    calls.clear()
    code, _, err = run(*named, "--csv", "r.csv", "--json", "r.json", "--resume")
    assert code == 1
    assert sum(calls) == 120 - n_finished
    assert Path("r.csv").read_text() == Path("whole.csv").read_text()
    assert Path("r.json").read_text() == Path("whole.json").read_text()
    assert not list(tmp_path.glob("*.jsonl"))
    with open("r.csv", newline="") as file:
        failed = {Path(row["file"]).name: row["error"] for row in csv.DictReader(file) if row["error"]}
    assert set(failed) == {path.name for path in broken}
    assert all(failed.values())
    assert f"{len(broken)} of {120 + len(broken)} pictures" in err


def test_a_killed_run_loses_only_its_last_part(run, tmp_path, monkeypatch):
    pictures(tmp_path / "d", 30)
    monkeypatch.setattr(classify, "_FIRST_PART", 8)
    monkeypatch.setattr(classify, "_PART_SECONDS", 0.0)
    stop_at(monkeypatch, 3)
    assert run("d", "--json", "r.json")[0] == 143
    journal = Path("r.partial.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])  # a kill in the middle of a line
    code, _, err = run("d", "--json", "r.json", "--resume")
    assert code == 1
    assert f"{len(lines) - 2} of " in err
    assert len(json.loads(Path("r.json").read_text())["rows"]) == 38


def test_a_file_that_changed_since_is_classified_anew(run, tmp_path, monkeypatch):
    pictures(tmp_path / "d", 24)
    monkeypatch.setattr(classify, "_FIRST_PART", 8)
    monkeypatch.setattr(classify, "_PART_SECONDS", 0.0)
    calls = stop_at(monkeypatch, 2)
    run("d", "--json", "r.json")
    broken = next((tmp_path / "d").glob("0/*broken*"))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "good.png")
    broken.write_bytes((tmp_path / "good.png").read_bytes())
    calls.clear()
    run("d", "--json", "r.json", "--resume")
    rows = {row["file"]: row for row in json.loads(Path("r.json").read_text())["rows"]}
    assert rows[str(broken.relative_to(tmp_path))]["error"] is None


@pytest.mark.parametrize("flags", [("--seed", 1), ("--n-samples", 3), ("--fit", "crop"), ("--window", "auto")])
def test_rows_of_other_settings_are_never_mixed(run, tmp_path, monkeypatch, flags):
    pictures(tmp_path / "d", 24)
    monkeypatch.setattr(classify, "_FIRST_PART", 8)
    monkeypatch.setattr(classify, "_PART_SECONDS", 0.0)
    stop_at(monkeypatch, 2)
    run("d", "--json", "r.json")
    before = Path("r.partial.jsonl").read_bytes()
    code, _, err = run("d", "--json", "r.json", "--resume", *flags)
    assert code == 2
    assert "made with something else" in err.splitlines()[-1]
    assert Path("r.partial.jsonl").read_bytes() == before


@pytest.mark.parametrize("content", [b"x", b"{}\n", b"no JSON\n", b"[1]\n", b'{"format": "msf-classify/1"}\n'])
def test_a_file_that_holds_no_rows_of_ours_is_left_alone(run, tmp_path, content):
    pictures(tmp_path / "d", 3)
    Path("r.partial.jsonl").write_bytes(content)
    code, _, err = run("d", "--json", "r.json", "--resume")
    assert code == 2
    assert "r.partial.jsonl" in err
    assert Path("r.partial.jsonl").read_bytes() == content


def test_a_run_that_was_killed_before_its_first_row_starts_anew(run, tmp_path):
    pictures(tmp_path / "d", 3)
    for content in (b"", b'{"format": "msf-cla'):
        Path("r.partial.jsonl").write_bytes(content)
        assert run("d", "--json", "r.json")[0] == 1
        assert not Path("r.partial.jsonl").exists()


def test_memory_per_row_is_bounded(tmp_path):
    n = 20_000
    files = [f"/pictures/{number:08}.png" for number in range(n)]
    tracemalloc.start()
    rows = PictureRows(files, score="margin", journal=Journal(tmp_path / "r.partial.jsonl", {}, resume=False))
    for number in range(n):
        rows.fail(number, "a reason of some length, as reasons are, told once for every file " * 4)
    rows.sync()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * n
    assert (tmp_path / "r.partial.jsonl").stat().st_size > 300 * n
    rows.close(are_written=False)
