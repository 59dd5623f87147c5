"""What `msf generate --per-class` makes: pools that training reads, whole after an interruption, never mixed."""

import csv
import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from msf.config import GenerateSettings
from msf.data import load_dataset
from msf.interruption import Interrupted
from msf.medsymmflow import MedSymmFlow
from msf.pools import making
from msf.pools.plan import parts_of, plan_pool
from msf.pools.stores import class_folders, store_for


@pytest.fixture
def run(msf, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fixed = ("--checkpoint", tiny_run, "--device", "cpu", "--n-steps", 1, "--micro-batch", 4)
    return lambda *arguments: msf("generate", *fixed, *arguments)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pictures_of(archive):
    """Return pictures by (label, rank among its label), splits one after another."""
    found = {}
    for split in ("train", "val", "test"):
        for picture, label in zip(archive[f"{split}_images"], archive[f"{split}_labels"][:, 0], strict=True):
            found[int(label), sum(key[0] == label for key in found)] = picture
    return found


def test_a_folder_has_a_folder_per_class_and_a_table_of_all_pictures(run, tmp_path):
    code, out, err = run("--per-class", 5, "--out", "pool", "--seed", 3, "--json", "run.json")
    assert (code, err) == (0, "")
    rows = table(tmp_path / "pool" / "metadata.csv")
    assert len(rows) == 25
    assert {(row["label"], row["index"]) for row in rows} == {(str(k), str(i)) for k in range(5) for i in range(5)}
    first = rows[0]
    assert first["file"] == f"{first['label_name']}/000000.png"
    assert (first["seed"], first["n_steps"], first["method"], first["guidance"]) == ("3", "1", "euler", "0.0")
    assert len(first["checkpoint_sha256"]) == 64
    assert all(np.asarray(Image.open(tmp_path / "pool" / row["file"])).shape == (8, 8, 3) for row in rows)
    noted = json.loads((tmp_path / "run.json").read_text())
    assert (noted["n"], noted["n_made_before"], noted["micro_batch"]) == (25, 0, 4)
    assert "25 pictures in pool" in out


def test_an_archive_is_a_data_set_that_training_reads(run, msf, tmp_path):
    from .conftest import TINY

    code, _, err = run("--per-class", 10, "--out", "pool.npz")
    assert (code, err) == (0, "")
    data = load_dataset(tmp_path / "pool.npz")
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [40, 5, 5]
    assert not list(tmp_path.glob(".pool*"))
    rows = table(tmp_path / "pool.metadata.csv")
    assert [row["split"] for row in rows] == ["train"] * 40 + ["val"] * 5 + ["test"] * 5
    assert [int(row["label"]) for row in rows[:40]] == data.train.labels.tolist()
    with np.load(tmp_path / "pool.npz") as archive:
        assert archive["class_names"].tolist() == ["0", "1", "2", "3", "4"]
    flags = {"dataset": tmp_path / "pool.npz", "out": tmp_path / "again", **TINY}
    assert msf("train", *(f"--{name}={value}" for name, value in flags.items()))[0] == 0


def test_folder_and_archive_hold_the_same_pictures(run, tmp_path):
    assert run("--per-class", 4, "--out", "pool")[0] == 0
    assert run("--per-class", 4, "--out", "pool.npz")[0] == 0
    with np.load(tmp_path / "pool.npz") as archive:
        packed = pictures_of(archive)
    for row in table(tmp_path / "pool" / "metadata.csv"):
        picture = np.asarray(Image.open(tmp_path / "pool" / row["file"]))
        assert np.array_equal(picture, packed[int(row["label"]), int(row["index"])]), row


@pytest.mark.parametrize("place", ["pool", "pool.npz"])
def test_an_interrupted_pool_is_completed_with_the_same_bits(tiny_run, tmp_path, monkeypatch, place):
    flow = MedSymmFlow.from_pretrained(tiny_run)
    plan = plan_pool(flow, range(5), 6, GenerateSettings(n_steps=1, micro_batch=4), seed=0)
    (tmp_path / "whole").mkdir()
    making.make_pool(flow, plan, store_for(tmp_path / "whole" / place, plan))
    (tmp_path / "broken").mkdir()

    monkeypatch.setattr(making, "parts_of", lambda _plan, numbers: [numbers[:7], numbers[7:]])
    made = []

    def make(flow, plan, part, real=making.make_part):
        made.append(list(part))
        if len(made) == 2:
            raise Interrupted(signal.SIGTERM)
        return real(flow, plan, part)

    monkeypatch.setattr(making, "make_part", make)
    with pytest.raises(Interrupted):
        making.make_pool(flow, plan, store_for(tmp_path / "broken" / place, plan))
    assert making.make_pool(flow, plan, store_for(tmp_path / "broken" / place, plan)) == 7
    assert made == [list(range(7)), list(range(7, 30)), list(range(7, 14)), list(range(14, 30))]
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_a_whole_folder_is_not_made_again(run, tmp_path, monkeypatch):
    assert run("--per-class", 3, "--out", "pool")[0] == 0
    before = contents(tmp_path / "pool")
    monkeypatch.setattr(making, "make_part", lambda *_: pytest.fail("a finished picture was made again"))
    code, out, _ = run("--per-class", 3, "--out", "pool")
    assert code == 0
    assert "15 of them made before" in out
    assert contents(tmp_path / "pool") == before


def test_one_picture_that_is_lost_comes_back_alone(run, tmp_path):
    assert run("--per-class", 3, "--out", "pool")[0] == 0
    before = contents(tmp_path / "pool")
    (tmp_path / "pool" / "3" / "000001.png").unlink()
    code, out, _ = run("--per-class", 3, "--out", "pool")
    assert (code, "14 of them made before" in out) == (0, True)
    assert contents(tmp_path / "pool") == before


@pytest.mark.parametrize(
    "change", [("--seed", 1), ("--per-class", 4), ("--labels", "0"), ("--guidance", 0, "--size", 4), ("--n-steps", 2)]
)
def test_pools_of_two_runs_are_not_mixed(run, tmp_path, change):
    assert run("--per-class", 3, "--out", "pool")[0] == 0
    before = contents(tmp_path / "pool")
    code, _, err = run("--per-class", 3, "--out", "pool", *change)
    assert (code, "holds a pool of another run (another " in err) == (2, True)
    assert contents(tmp_path / "pool") == before


def test_an_archive_and_a_folder_of_others_are_never_replaced(run, tmp_path):
    (tmp_path / "pool.npz").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    code, _, err = run("--per-class", 3, "--out", "pool.npz")
    assert (code, "is there already" in err) == (2, True)
    code, _, err = run("--per-class", 3, "--out", "folder")
    assert (code, "must be a new or empty folder; it holds 'mine.txt'" in err) == (2, True)
    assert contents(tmp_path) == {"pool.npz": b"mine", "folder/mine.txt": b"mine"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--per-class", 2, "--out", "pool.npz"), "three or more pictures of every class"),
        (("--per-class", 3, "--labels", "0,1", "--out", "pool.npz"), "3 of 2 classes of 5"),
        (("--per-class", 3, "--n", 2), "n and per_class exclude each other"),
        (("--n", 2, "--out", "pool.npz"), "an archive is made with --per-class"),
        (("--per-class", 2**25 + 1), "per_class must be in"),
        (("--per-class", 3, "--guidance", 1), "guidance needs a network that was trained with label dropping"),
        (("--per-class", 0), "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_made_is_one_line_before_any_work(run, tmp_path, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out, words in err, err.count("\n")) == (2, "", True, 1), err
    assert not list(tmp_path.iterdir())


def test_class_folders_are_names_that_file_systems_take():
    names = ("a/b", "..", "Mole", "mole", "basal cell, (flat)", " x ", "")
    assert class_folders(names)[0] == "a_b"
    assert class_folders(names)[4] == "basal cell, (flat)"
    assert len({name.casefold() for name in class_folders(names)}) == len(names)
    assert not any(name in ("", ".", "..") or "/" in name or name.strip() != name for name in class_folders(names))


def test_a_pool_is_made_a_micro_batch_at_a_time(make_flow):
    flow = make_flow(n_classes=2)
    plan = plan_pool(flow, [0, 1], 300_000, GenerateSettings(micro_batch=48), seed=0)
    parts = parts_of(plan, range(7, len(plan)))
    assert [number for part in parts for number in part] == list(range(7, 600_000))
    assert {len(part) for part in parts[:-1]} == {48}


def test_a_part_that_is_not_full_has_the_bits_of_a_full_one(tiny_run):
    flow = MedSymmFlow.from_pretrained(tiny_run)
    plan = plan_pool(flow, range(5), 3, GenerateSettings(n_steps=2, micro_batch=8), seed=0)
    whole = torch.cat([making.make_part(flow, plan, part) for part in parts_of(plan, range(15))])
    assert torch.equal(making.make_part(flow, plan, [14, 3]), whole[[14, 3]])
    assert torch.equal(making.make_part(flow, plan, list(range(15))[::-1]), whole.flip(0))
    larger = plan_pool(flow, [3], 9, GenerateSettings(n_steps=2, micro_batch=8), seed=0)
    assert torch.equal(making.make_part(flow, larger, [0, 1, 2]), whole[9:12])
