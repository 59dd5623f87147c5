"""Calibration from Python: what it refuses, what it is bound to, and that it comes back from the disk as it was."""

import dataclasses
import json

import pytest
import torch

from msf.calibrate import CALIBRATION_FILE, calibrate, load_calibration, made_with, save_calibration
from msf.config import ClassifySettings
from msf.data import ImageDataset, Split, hold_out_calibration
from msf.judge.decisions import Calibration, Wishes, decision_outcomes


def data(n_classes=3, n=24):
    generator = torch.Generator().manual_seed(0)

    def split(size):
        images = torch.randint(0, 256, (size, 8, 8, 1), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(size) % n_classes)

    return ImageDataset(
        name="squares", train=split(n), val=split(n), test=split(1), class_names=tuple("abcdef"[:n_classes]),
        flips=False, is_ordinal=False, licence="", citation="", fingerprint="0",
    )  # fmt: skip


WISHES = Wishes(risks=(0.5,), levels=(0.5,))


def test_it_comes_back_from_the_disk_as_it_was(make_flow, tmp_path):
    flow, dataset = make_flow(code="simplex"), data()
    found = calibrate(flow, dataset, "val", WISHES, n_samples=2)
    path = save_calibration(found, tmp_path)
    assert path == tmp_path / CALIBRATION_FILE
    read = load_calibration(tmp_path)
    assert read == found
    assert read.digest == found.digest
    prediction = flow.classify(dataset.val.images, n_samples=2)
    outcome = decision_outcomes(read, prediction, dataset.val.labels)
    assert outcome == decision_outcomes(found, prediction, dataset.val.labels)
    assert outcome["scaled"]["nll"] == pytest.approx(found.scaling.nll_after, abs=1e-12)
    assert outcome["sets"][0]["coverage"] >= 0.5
    json.dumps(outcome, allow_nan=False)


def test_every_stored_setting_is_decisive(make_flow):
    flow = make_flow(code="simplex", time_coupling="independent")
    settings = ClassifySettings(n_samples=2)
    bound = made_with(flow, settings)
    assert bound.keys() >= settings.to_dict().keys() | {"checkpoint_sha256", "code", "image_size", "msf"}
    found = calibrate(flow, data(), "val", WISHES, settings)
    found.require_same(bound)
    for name in bound:
        with pytest.raises(ValueError, match=f"made with something else .*{name} "):
            found.require_same({**bound, name: "other"})
    with torch.no_grad():
        next(flow.network.parameters()).add_(1)
    with pytest.raises(ValueError, match="checkpoint_sha256"):
        found.require_same(made_with(flow, settings))


def test_the_part_that_was_kept_has_no_note_and_val_and_train_have(make_flow):
    flow, dataset = make_flow(code="simplex"), hold_out_calibration(data(), 0.5)
    for split, word in (("calibration", None), ("val", "chose the kept epoch"), ("train", "was trained on these")):
        notes = calibrate(flow, dataset, split, WISHES, n_samples=1).notes
        assert [word in note for note in notes] == ([] if word is None else [True])


def test_what_cannot_be_calibrated_on_is_refused(make_flow):
    flow = make_flow(code="simplex")
    with pytest.raises(ValueError, match="dataset must have the model's 3 classes; 'squares' has 4"):
        calibrate(flow, data(n_classes=4), "val")
    with pytest.raises(ValueError, match="must hold at least two pictures; it has 1"):
        calibrate(flow, data(), "test")
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'calibration'"):
        calibrate(flow, data())
    flow.task = dataclasses.replace(flow.task, is_per_pixel=True)
    with pytest.raises(ValueError, match="needs a class per picture"):
        calibrate(flow, data(), "val")


def test_what_was_not_written_by_it_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run 'msf calibrate"):
        load_calibration(tmp_path)
    (tmp_path / CALIBRATION_FILE).write_text("{")
    with pytest.raises(ValueError, match="must hold what 'msf calibrate' writes"):
        load_calibration(tmp_path)
    with pytest.raises(ValueError, match="is not what 'msf calibrate' writes"):
        Calibration.from_dict({"made_with": 3})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": "luck"}, "score must be one of nearest_distance"),
        ({"risks": (0.1, 1.0)}, r"risk must be in \(0, 1\); got 1.0"),
        ({"delta": 0.0}, r"delta must be in \(0, 1\); got 0.0"),
        ({"levels": (2.0,)}, r"level must be in \(0, 1\); got 2.0"),
    ],
)
def test_wishes_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Wishes(**fields)
