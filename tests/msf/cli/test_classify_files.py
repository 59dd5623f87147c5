"""What `msf classify` does with files, names and results: nothing is lost, nothing is mixed, everything is said."""

import csv
import dataclasses
import errno
import json
import os
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from msf import MedSymmFlow
from msf.checkpoints.folder import save_checkpoint
from msf.cli import classify, targets


def picture(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), level, np.uint8)).save(path, format="PNG")
    return path


@pytest.fixture
def run(msf, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: msf("classify", *arguments, "--checkpoint", tiny_run, "--device", "cpu")


def rows_of(path):
    return json.loads(path.read_text())["rows"]


def test_a_missing_path_among_many_costs_nothing_but_its_own_row(run, tmp_path):
    pictures = [picture(tmp_path / f"{n}.png", n) for n in range(3)]
    paths = [pictures[0], tmp_path / "none.png", tmp_path / "nowhere", *pictures[1:]]
    code, out, err = run(*paths, "--json", "r.json", "--csv", "r.csv")
    assert code == 1
    rows = rows_of(tmp_path / "r.json")
    assert [row["file"] for row in rows] == list(map(str, paths))
    assert ["label" in row for row in rows] == [True, False, False, True, True]
    assert "does not exist" in rows[1]["error"]
    assert err.splitlines()[-1].startswith("msf: not classified: 2 of 5 pictures; picture ")
    assert sum(line.startswith("msf: ") for line in err.splitlines()) == 1
    assert len(out.splitlines()) == 4
    with (tmp_path / "r.csv").open(newline="") as file:
        assert [bool(row["error"]) for row in csv.DictReader(file)] == [False, True, True, False, False]


def test_a_name_that_is_no_text_loses_nothing(run, tmp_path):
    name = os.fsdecode(b"caf\xe9\n.png")
    picture(tmp_path / "d" / name)
    picture(tmp_path / "d" / "z.png")
    code, out, _ = run("d", "--json", "r.json", "--csv", "r.csv")
    assert code == 0
    assert len(out.splitlines()) == 3
    assert "caf\\udce9\\n.png" in out
    rows = rows_of(tmp_path / "r.json")
    assert os.path.exists(rows[0]["file"])  # the very name
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["d/caf\\udce9\n.png", "d/z.png"]


def test_names_are_printed_as_they_are_and_apart(run, tmp_path):
    for name in ("a/1.png", "b/1.png", "[red]x.png", ":smile:.png", "control\x1b[31m.png"):
        picture(tmp_path / "d" / name)
    code, out, _ = run("d")
    assert code == 0
    shown = [line.split("  ")[0] for line in out.splitlines()[1:]]
    assert shown == [":smile:.png", "[red]x.png", "a/1.png", "b/1.png", "control\\x1b[31m.png"]


def test_a_stream_that_lacks_letters_loses_nothing(run, tmp_path):
    picture(tmp_path / "é中.png")
    sys.stdout.reconfigure(encoding="ascii")
    code, out, _ = run("é中.png")
    assert code == 0
    assert "\\xe9\\u4e2d.png" in out


def test_long_names_are_not_cut(run, tmp_path):
    name = "x" * 200 + ".png"
    picture(tmp_path / name)
    assert name in run(name)[1]


def test_referral_is_spoken_of_only_where_it_was_asked_for(run, tmp_path):
    for n in range(4):
        picture(tmp_path / "d" / f"{n}.png", 60 * n)
    _, out, _ = run("d", "--json", "r.json")
    assert not any(word in out for word in ("accept", "referral", "keep", "decision"))
    assert all("is_referred" not in row for row in rows_of(tmp_path / "r.json"))
    _, out, _ = run("d", "--json", "r.json", "--refer", 0.5)
    assert out.splitlines()[0].split()[-1] == "referral"
    assert [line.rpartition("  ")[2] for line in out.splitlines()[1:5]].count("refer to a person") == 2
    assert out.splitlines()[-1] == "2 of 4 pictures to refer to a person"
    assert sum(row["is_referred"] for row in rows_of(tmp_path / "r.json")) == 2
    _, out, _ = run("d", "--json", "r.json", "--refer", 0)
    assert out.splitlines()[-1] == "0 of 4 pictures to refer to a person"


def test_what_is_skipped_is_said(run, tmp_path):
    picture(tmp_path / "d" / "deep" / "1.png")
    picture(tmp_path / "d" / "._1.png")
    (tmp_path / "d" / "[b]notes.t[x").touch()
    code, out, err = run("d", "d/deep/1.png")
    assert code == 0
    assert "1 hidden" in err
    assert "1 .t[x" in err
    assert "1 named twice" in err
    assert len(out.splitlines()) == 2


def test_generated_pictures_are_classified_without_the_overview(run, msf, tiny_run, tmp_path):
    assert msf("generate", "--checkpoint", tiny_run, "--n", 2, "--n-steps", 1, "--device", "cpu")[0] == 0
    code, _, err = run("generated", "--json", "r.json")
    assert code == 0
    assert len(rows_of(tmp_path / "r.json")) == 10
    assert "1 figures drawn by msf" in err


def spoil(monkeypatch, level):
    """Let the network answer NaN to pictures of that level."""
    original = MedSymmFlow.classify

    def classify(self, images, *arguments, **options):
        prediction = original(self, images, *arguments, **options)
        spoilt = (images.amax((1, 2, 3)) - (level / 127.5 - 1)).abs() < 1e-6
        prediction.class_distance[spoilt] = float("nan")
        prediction.probability[spoilt] = float("nan")
        return prediction

    monkeypatch.setattr(MedSymmFlow, "classify", classify)


def test_a_picture_whose_answer_is_not_a_number_is_named_and_the_others_classified(run, tmp_path, monkeypatch):
    for n in range(3):
        picture(tmp_path / "d" / f"{n}.png", 100 * n)
    spoil(monkeypatch, 100)
    code, _, err = run("d", "--json", "r.json", "--refer", 0.5)
    assert code == 1
    assert "1.png" in err.splitlines()[-1]
    assert "not finite" in err.splitlines()[-1]
    assert ["label" in row for row in rows_of(tmp_path / "r.json")] == [True, False, True]
    code, _, err = run("d/1.png", "--json", "none.json")
    assert code == 2
    assert err.count("\n") == 1
    assert not (tmp_path / "none.json").exists()


def test_a_picture_that_the_network_refuses_is_found_among_the_others(run, tmp_path, monkeypatch):
    for n in range(5):
        picture(tmp_path / "d" / f"{n}.png", 50 * n)
    original = MedSymmFlow.classify

    def refuse(self, images, *arguments, **options):
        if ((images.amax((1, 2, 3)) - (150 / 127.5 - 1)).abs() < 1e-6).any():
            raise ValueError("latents must be finite; got NaN")
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(MedSymmFlow, "classify", refuse)
    code, _, err = run("d", "--json", "r.json")
    assert code == 1
    rows = rows_of(tmp_path / "r.json")
    assert ["label" in row for row in rows] == [True, True, True, False, True]
    assert "latents must be finite" in rows[3]["error"]
    assert "3.png" in err.splitlines()[-1]


def test_results_that_cannot_be_written_at_the_end_are_kept_elsewhere(run, tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "kept"))
    monkeypatch.setattr(targets.tempfile, "tempdir", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()

    def full(path, writer):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(targets, "write_atomically", full)
    code, out, err = run("a.png", "--csv", "r.csv")
    assert code == 1
    assert "a.png" in out
    line = err.splitlines()[-1]
    assert line.startswith("msf: 'r.csv' could not be written (No space left on device): what it should hold is in ")
    (kept,) = (tmp_path / "kept").iterdir()
    assert str(kept) in line
    assert kept.read_text().startswith("file,error,index,label")


def test_where_nothing_can_be_written_results_are_printed(run, tmp_path, monkeypatch):
    picture(tmp_path / "a.png")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(targets, "write_atomically", full)
    monkeypatch.setattr(targets.tempfile, "mkstemp", full)
    code, out, err = run("a.png", "--csv", "r.csv")
    assert code == 1
    assert "file,error,index,label" in out
    assert "printed above" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_finished_rows(run, tmp_path, monkeypatch, number, code):
    for n in range(6):
        picture(tmp_path / "d" / f"{n}.png", 40 * n)
    original, calls = MedSymmFlow.classify, []

    def interrupted(self, images, *arguments, **options):
        calls.append(len(images))
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(MedSymmFlow, "classify", interrupted)
    monkeypatch.setattr(classify, "_FIRST_PART", 2)
    ended, _, err = run("d", "--csv", "r.csv", "--json", "r.json")
    assert ended == code
    assert calls == [2, 4]
    line = err.splitlines()[-1]
    assert line.startswith(f"msf: interrupted by {number.name}; 2 of 6 pictures are classified: their rows are in ")
    assert "'r.partial.jsonl'; go on with: msf classify d --csv r.csv" in line
    assert line.endswith("--resume")
    finished = [json.loads(row) for row in (tmp_path / "r.partial.jsonl").read_text().splitlines()[1:]]
    assert [row["file"] for row in finished] == ["d/0.png", "d/1.png"]
    assert not (tmp_path / "r.csv").exists()


def test_a_signal_before_the_first_row_is_one_line(run, tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    monkeypatch.setattr(MedSymmFlow, "classify", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    code, out, err = run("a.png", "--csv", "r.csv")
    assert (code, out, err) == (
        143,
        "",
        "msf: interrupted by SIGTERM; nothing new is kept; the same command starts again\n",
    )
    assert list(tmp_path.glob("r*")) == []


def test_results_go_through_links_and_to_devices(run, tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "link.json").symlink_to("real.json")
    assert run("a.png", "--json", "link.json")[0] == 0
    assert (tmp_path / "link.json").is_symlink()
    assert len(rows_of(tmp_path / "real.json")) == 1
    assert run("a.png", "--json", "/dev/null", "--csv", "/dev/null")[0] == 0
    assert not os.path.isfile("/dev/null")


def test_a_protected_result_is_refused_before_the_work(run, tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    (tmp_path / "r.csv").touch()
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK)
    code, out, err = run("a.png", "--csv", "r.csv")
    assert (code, out) == (2, "")
    assert "'r.csv' cannot be written: it is protected" in err


def test_more_pictures_than_one_part_are_all_there_in_order(run, tmp_path, monkeypatch):
    for n in range(9):
        picture(tmp_path / "d" / f"{n}.png", 25 * n)
    (tmp_path / "d" / "4.png").write_bytes(b"")
    run("d", "--json", "whole.json", "--micro-batch", 4)
    monkeypatch.setattr(classify, "_FIRST_PART", 1)
    monkeypatch.setattr(classify, "_PART_SECONDS", 0.0)
    run("d", "--json", "parts.json", "--micro-batch", 4)
    assert (tmp_path / "whole.json").read_text() == (tmp_path / "parts.json").read_text()


def test_progress_is_told_in_a_pipe(run, tmp_path, monkeypatch):
    from msf.cli import console

    for n in range(3):
        picture(tmp_path / "d" / f"{n}.png", n)
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    _, _, err = run("d")
    assert any(line.startswith("classifying: 3/3 (") for line in err.splitlines())


def test_the_budget_of_pixels_is_a_flag(run, tmp_path):
    picture(tmp_path / "a.png")
    code, _, err = run("a.png", "--max-pixels", 63)
    assert code == 2
    assert "--max-pixels" in err
    assert run("a.png", "--max-pixels", 64)[0] == 0


def test_a_picture_that_may_not_be_read_costs_only_its_own_row(run, tmp_path, monkeypatch):
    files = [picture(tmp_path / f"{n}.png", n) for n in range(2)]
    opened, access = Image.open, os.access

    def open_other(path, **options):
        if str(path).endswith("0.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, **options)

    monkeypatch.setattr(Image, "open", open_other)
    monkeypatch.setattr(os, "access", lambda path, mode, **_: not str(path).endswith("0.png") and access(path, mode))
    code, out, err = run(*files)
    assert code == 1
    assert "1.png" in out
    assert "Permission denied" in err


def test_classes_of_one_name_keep_their_columns(tmp_path, tiny_run, msf, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    names = ("x", "x", "source", "", "new\nline")
    folder = tmp_path / "named"
    flow = MedSymmFlow.from_pretrained(tiny_run)
    save_checkpoint(folder, dataclasses.replace(flow.task, class_names=names), flow.config, flow.network.state_dict())
    code, out, _ = msf("classify", tmp_path / "a.png", "--checkpoint", folder, "--device", "cpu", "--csv", "r.csv")
    assert code == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    shown = ("x (0)", "x (1)", "source (2)", "", "new\nline")
    assert sum(float(row[f"probability_{name}"]) for name in shown) == pytest.approx(1)
    assert row["label_name"] == names[int(row["label"])]
    assert len(out.splitlines()) == 2
