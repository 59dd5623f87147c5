import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from msf.data import hold_out_calibration, load_dataset, make_phantoms, packed_rows, picture_groups


@pytest.fixture
def dataset(tmp_path):
    arrays = make_phantoms(0, {"train": 60, "val": 10, "test": 10})
    np.savez(tmp_path / "cells.npz", **{name: values.numpy() for name, values in arrays.items()})
    return load_dataset(tmp_path / "cells.npz")


def note_groups(dataset, groups):
    """Write beside a data set what `msf pack` would, with a group per training picture."""
    dataset.path.with_suffix(".json").write_text(json.dumps({"sha256": dataset.fingerprint}))
    with dataset.path.with_suffix(".rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "split", "group"])
        for split in ("train", "val", "test"):
            for number in range(len(dataset.split(split))):
                writer.writerow([f"{split}-{number}.png", split, groups[number] if split == "train" else ""])


def test_a_share_of_every_class_is_kept_from_training_and_nothing_else_changes(dataset):
    held = hold_out_calibration(dataset, 0.25)
    assert len(held.split("calibration")) == 15
    assert len(held.train) == 45
    assert held.val is dataset.val
    assert held.test is dataset.test
    rows = torch.cat([held.held_out.rows["train"], held.held_out.rows["calibration"]])
    assert rows.sort().values.tolist() == list(range(60))
    for name in ("train", "calibration"):
        part, own = held.split(name), held.held_out.rows[name]
        assert torch.equal(part.images, dataset.train.images[own])
        assert torch.equal(part.labels, dataset.train.labels[own])
    counts = held.split("calibration").labels.bincount(minlength=dataset.n_classes)
    assert counts.min() >= 1
    assert held.fingerprint != dataset.fingerprint


def test_the_division_is_the_same_each_time_and_another_for_another_share(dataset):
    first, again = hold_out_calibration(dataset, 0.25), hold_out_calibration(load_dataset(dataset.path), 0.25)
    assert torch.equal(first.held_out.rows["calibration"], again.held_out.rows["calibration"])
    assert first.fingerprint == again.fingerprint
    assert hold_out_calibration(dataset, 0.5).fingerprint != first.fingerprint


def test_without_a_share_it_is_the_data_set_itself(dataset):
    assert hold_out_calibration(dataset, 0.0) is dataset
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'calibration'"):
        dataset.split("calibration")


def test_no_group_is_torn_and_groups_go_with_the_pictures(dataset):
    groups = [f"patient {number // 3}" for number in range(60)]
    note_groups(dataset, groups)
    held = hold_out_calibration(dataset, 0.3)
    names = {split: {groups[row] for row in held.held_out.rows[split].tolist()} for split in ("train", "calibration")}
    assert not names["train"] & names["calibration"]
    for split in ("train", "calibration"):
        rows = held.held_out.rows[split].tolist()
        assert [row["file"] for row in packed_rows(held, split)] == [f"train-{row}.png" for row in rows]
        numbers = picture_groups(held, split)
        assert len(set(numbers.tolist())) == len(names[split])
        assert len({(number, groups[row]) for number, row in zip(numbers, rows, strict=True)}) == len(names[split])
    assert packed_rows(held, "val")[0]["file"] == "val-0.png"
    assert picture_groups(held, "val") is None


def test_a_picture_without_a_group_is_one_of_its_own(dataset):
    note_groups(dataset, ["a", "a", *[""] * 58])
    numbers = picture_groups(dataset, "train")
    assert numbers[0] == numbers[1]
    assert len(set(numbers.tolist())) == 59


def test_notes_of_other_pictures_are_no_groups(dataset):
    note_groups(dataset, ["a"] * 60)
    assert picture_groups(dataset, "train") is not None
    assert picture_groups(dataclasses.replace(dataset, fingerprint="0"), "train") is None


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (1.0, r"calibration_share must be in \[0, 1\); got 1.0"),
        (-0.1, r"calibration_share must be in \[0, 1\)"),
        (0.01, "calibration_share of 0.01 cannot be kept of the train split"),
    ],
)
def test_a_share_that_cannot_be_is_refused(dataset, share, message):
    with pytest.raises(ValueError, match=message):
        hold_out_calibration(dataset, share)
