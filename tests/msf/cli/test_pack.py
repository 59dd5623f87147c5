"""`msf pack`, and the commands that take the same sources: folders, tables, DICOM, splits and names."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msf.data import load_dataset, make_phantoms
from tests.msf.cli.conftest import TINY

NAMES = ("pale", "round", "kidney", "two lobes", "three lobes")


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A folder per class, the same as a table with patients, and one broken file."""
    root = tmp_path_factory.mktemp("cells")
    arrays = make_phantoms(0, {"train": 120, "val": 15, "test": 15})
    rows = [("file", "label", "patient")]
    for number, (image, label) in enumerate(zip(arrays["train_images"], arrays["train_labels"], strict=True)):
        path = root / "pictures" / NAMES[int(label)] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
        rows.append((path.relative_to(root), NAMES[int(label)], f"P{number // 3}"))
    (root / "pictures" / "pale" / "broken.png").write_bytes(b"x")
    with (root / "cells.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


@pytest.fixture
def at(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MSF_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_folder_is_packed_with_a_report_and_rows(msf, cells, at):
    code, out, err = msf("pack", cells / "pictures", "--out", "cells.npz", "--size", 8, "--seed", 3)
    assert code == 0
    assert "broken.png' must be an intact picture" in err
    assert [line.split("  ")[0] for line in out.splitlines()[2:8]] == [*sorted(NAMES), "all"]
    data = load_dataset("cells.npz")
    assert data.class_names == tuple(sorted(NAMES))
    assert data.image_size == 8
    assert sorted(os.listdir()) == ["cells.json", "cells.npz", "cells.rows.csv"]


def test_train_evaluate_and_classify_take_a_table_as_it_is(msf, cells, at):
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    code, _, err = msf("train", "--dataset", cells / "cells.csv", "--out", "run", "--val", 0.2, "--test", 0.2, *flags)
    assert code == 0
    assert "packed: " in err
    (packed,) = Path("cache/packed").glob("cells-*.npz")
    config = json.loads(Path("run/config.json").read_text())
    assert config["task"]["class_names"] == sorted(NAMES)
    assert config["experiment"]["data"]["dataset"] == str(packed.absolute())
    with packed.with_suffix(".rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    splits = {}
    for row in rows:
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())

    code, out, _ = msf(
        "evaluate", "--checkpoint", "run", "--device", "cpu", "--per-image", "rows.csv", "--json", "m.json"
    )
    assert code == 0
    assert "two lobes" in out
    of_test = [row for row in rows if row["split"] == "test"]
    with open("rows.csv", newline="") as file:
        evaluated = list(csv.DictReader(file))
    assert [row["file"] for row in evaluated] == [row["file"] for row in of_test]
    assert [row["true_label_name"] for row in evaluated] == [row["class"] for row in of_test]
    metrics = json.loads(Path("m.json").read_text())
    assert metrics["n_images"] == len(of_test)
    assert np.mean([row["is_correct"] == "True" for row in evaluated]) == pytest.approx(metrics["accuracy"])
    assert evaluated[0]["checkpoint_sha256"] == metrics["provenance"]["checkpoint_sha256"]
    assert {row["version_torch"] for row in evaluated} == {metrics["provenance"]["versions"]["torch"]}
    assert {"score_margin", "probability_two lobes", "decision", "seed", "method"} <= set(evaluated[0])

    code, out, _ = msf("classify", cells / "cells.csv", "--checkpoint", "run", "--device", "cpu", "--json", "c.json")
    assert code == 0
    classified = json.loads(Path("c.json").read_text())["rows"]
    assert len(classified) == 120
    assert set(classified[0]["probability"]) == set(NAMES)


def test_rows_of_an_evaluation_as_parquet_are_those_as_csv(msf, tiny_run, tiny_npz, at):
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("rows.csv", "rows.parquet"):
        common = ("--checkpoint", tiny_run, "--dataset", tiny_npz, "--device", "cpu")
        assert msf("evaluate", *common, "--per-image", name)[0] == 0
    table = parquet.read_table("rows.parquet").to_pylist()
    with open("rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(table) == len(rows) == 20
    for row, text in zip(table, rows, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == text


def test_a_set_of_some_classes_is_evaluated_under_the_names_of_the_network(msf, cells, at):
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    assert msf("train", "--dataset", cells / "pictures", "--out", "run", *flags)[0] == 0
    for number, name in enumerate(("Two Lobes", "pale", "pale")):
        path = at / "new" / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 7), 90 + number, np.uint8)).save(path)
    code, _, err = msf("evaluate", "--checkpoint", "run", "--dataset", "new", "--only-test", "--json", "m.json")
    assert code == 0, err
    metrics = json.loads(Path("m.json").read_text())
    assert [entry["n"] for entry in metrics["per_class"]] == [0, 2, 0, 0, 1]
    assert [entry["class"] for entry in metrics["per_class"]] == sorted(NAMES)
    assert not any("names" in warning for warning in metrics["warnings"])


def test_class_names_reach_a_trained_network(msf, tiny_npz, at):
    flags = [f"--{name}={value}" for name, value in TINY.items()]
    code, _, _ = msf("train", "--dataset", tiny_npz, "--out", "run", "--class-names", 'a,"b, c",d,e,f', *flags)
    assert code == 0
    assert json.loads(Path("run/config.json").read_text())["task"]["class_names"] == ["a", "b, c", "d", "e", "f"]


def test_dicom_files_are_classified_and_their_patients_stay_unnamed(msf, tiny_run, at):
    pytest.importorskip("pydicom")
    from tests.msf.data import dicom_kinds

    (at / "d").mkdir()
    for number in range(3):
        dicom_kinds.dicom(dicom_kinds.STORED + number * 9, bits=12)(at / "d" / f"{number}")
    dicom_kinds.dicom(dicom_kinds.FRAMES, bits=12)(at / "d" / "frames")
    common = ("classify", "d", "--checkpoint", tiny_run, "--device", "cpu", "--csv", "r.csv", "--json", "r.json")
    code, out, err = msf(*common)
    assert code == 1
    assert "choose one with --frame" in err
    written = out + err + Path("r.csv").read_text() + Path("r.json").read_text()
    assert not any(word in written for word in ("Mustermann", "4711", "1964"))
    assert msf(*common, "--frame", 1, "--window", "1000,2000")[0] == 0
    with open("r.csv", newline="") as file:
        assert [Path(row["file"]).name for row in csv.DictReader(file)] == ["0.dcm", "1.dcm", "2.dcm", "frames.dcm"]


@pytest.mark.parametrize("window", ["1,2,3", "wide", "40", "nan,5", "40,0", "", "40,inf"])
def test_windows_that_are_none_are_refused(msf, tiny_run, cells, at, window):
    picture = cells / "pictures" / "pale" / "broken.png"
    code, _, err = msf("classify", picture, "--checkpoint", tiny_run, "--device", "cpu", "--window", window)
    assert code == 2
    assert err.startswith("msf: window must")
    assert err.count("\n") == 1
