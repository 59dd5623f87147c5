"""What `msf generate` does with its folder and its labels."""

import json
import os
import signal

import pytest
import torch
from PIL import Image

from msf.cli.generate import label_numbers
from msf.files.claim import claimed_folder

NAMES = ("basophil", "Immature  Granulocyte", "collecting duct, connecting tubule", "drusen", "1", "DRUSEN")


@pytest.fixture
def run(msf, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = ("--checkpoint", tiny_run, "--device", "cpu", "--n-steps", 1)
    return lambda *arguments: msf("generate", *fixed, *arguments)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ("0", [0]),
        (" basophil , 2 ", [0, 2]),
        ("BASOPHIL,immature granulocyte", [0, 1]),
        ("collecting duct, connecting tubule,0", [2, 0]),
        ("0,Collecting duct,connecting tubule", [0, 2]),
        ("drusen,DRUSEN", [3, 5]),
        ("1", [4]),  # a name comes before a number
        ("5,4", [5, 4]),
    ],
)
def test_labels_are_names_in_any_case_or_numbers(text, labels):
    assert label_numbers(text, NAMES) == labels


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,0", "0 .basophil. twice"),
        ("0,basophil", "0 .basophil. twice"),
        ("Drusen", "one class each"),
        ("collecting duct", "among 0 .basophil., "),
        ("6", "got '6'"),
        ("", "got ''"),
        ("0,,2", "got ''"),
    ],
)
def test_labels_that_are_none_or_mean_two_or_come_twice_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        label_numbers(text, NAMES)


def test_every_listed_file_is_there_once(run, tmp_path):
    code, _, _ = run("--labels", "3,0", "--n", 2, "--json", "list.json")
    assert code == 0
    content = json.loads((tmp_path / "list.json").read_text())
    listed = content["pictures"]
    assert [(row["file"], row["label"]) for row in listed] == [
        ("generated/03-0000.png", 3), ("generated/03-0001.png", 3), ("generated/00-0000.png", 0),
        ("generated/00-0001.png", 0),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "generated").glob("*.png")) == sorted(
        os.path.basename(row["file"]) for row in listed
    )


@pytest.mark.parametrize("change", [("--seed", 1), ("--n", 3), ("--labels", "0"), ("--size", 4), ("--n-steps", 2)])
def test_another_run_touches_nothing_in_the_folder(run, tmp_path, change):
    assert run("--labels", "0,1", "--n", 2)[0] == 0
    before = contents(tmp_path / "generated")
    code, out, err = run("--labels", "0,1", "--n", 2, *change)
    assert (code, out) == (2, "")
    assert "holds 4 pictures of another run" in err
    assert "--out" in err
    assert contents(tmp_path / "generated") == before


def test_another_network_touches_nothing_in_the_folder(run, msf, tiny_run, tmp_path):
    from msf.medsymmflow import MedSymmFlow

    assert run("--labels", "0", "--n", 1)[0] == 0
    other = MedSymmFlow.from_pretrained(tiny_run)
    with torch.no_grad():
        next(other.network.parameters()).add_(1)
    other.save_pretrained(tmp_path / "other")
    code, _, err = msf(
        "generate", "--checkpoint", tmp_path / "other", "--labels", "0", "--n", 1, "--n-steps", 1, "--device", "cpu"
    )
    assert code == 2
    assert "another network" in err


def test_the_same_command_completes_what_was_left_unfinished(run, tmp_path, monkeypatch):
    from msf import report

    written = report.write_pictures

    def stopped(pictures, paths):
        written(pictures[:1], paths[:1])
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(report, "write_pictures", stopped)
    code, _, err = run("--labels", "0,1", "--n", 2)
    assert code == 143
    assert "the same command" in err
    assert len(list((tmp_path / "generated").glob("*.png"))) == 1
    monkeypatch.setattr(report, "write_pictures", written)
    assert run("--labels", "0,1", "--n", 2)[0] == 0
    assert len(list((tmp_path / "generated").glob("*.png"))) == 4
    assert (tmp_path / "generated" / "overview" / "grid.png").is_file()


def test_old_folders_without_a_note_are_left_alone(run, tmp_path):
    folder = tmp_path / "generated"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "02-0007.png")
    code, _, err = run("--labels", "0", "--n", 1)
    assert code == 2
    assert "1 pictures of another run" in err
    assert os.listdir(folder) == ["02-0007.png"]


def test_other_files_in_the_folder_do_not_matter(run, tmp_path):
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "notes.txt").write_text("mine")
    assert run("--labels", "0", "--n", 1, "--json", "generated/list.json")[0] == 0
    assert (tmp_path / "generated" / "notes.txt").read_text() == "mine"


def test_results_may_lie_in_the_folder_that_is_made(run, tmp_path):
    assert run("--labels", "0", "--n", 1, "--out", "new", "--json", "new/list.json")[0] == 0
    assert (tmp_path / "new" / "list.json").is_file()
    code, _, err = run("--labels", "0", "--n", 1, "--out", "newer", "--json", "newer/generated.json")
    assert code == 2
    assert "--json" in err


def test_nothing_is_left_in_the_folder_where_the_answer_is_not_a_number(run, tmp_path, monkeypatch):
    from msf.medsymmflow import MedSymmFlow

    original = MedSymmFlow.generate

    def generate(self, *arguments, **options):
        pictures = original(self, *arguments, **options)
        pictures[2, 0, 0, 0] = float("nan")
        return pictures

    monkeypatch.setattr(MedSymmFlow, "generate", generate)
    code, _, err = run("--labels", "0,1", "--n", 2)
    assert code == 2
    assert "1 of 4 pictures, first for number 0 of class 1" in err
    assert list((tmp_path / "generated").glob("*.png")) == []


def test_a_run_that_made_no_picture_does_not_hold_the_folder(run, tmp_path):
    assert run("--labels", "0", "--n", 1, "--seed", 2**63)[0] == 2
    assert run("--labels", "0", "--n", 1)[0] == 0
    assert len(list((tmp_path / "generated").glob("*.png"))) == 1


def test_two_runs_at_once_are_never_mixed(run, tmp_path):
    folder = tmp_path / "generated"
    with claimed_folder(folder, "generation"):
        code, out, err = run("--labels", "0", "--n", 1)
        assert (code, out) == (2, "")
        assert "folder 'generated' is in use by another generation" in err
        assert list(folder.glob("*.png")) == []
    assert run("--labels", "0", "--n", 1)[0] == 0
    assert sorted(os.listdir(folder)) == ["00-0000.png", "generated.json", "overview"]
