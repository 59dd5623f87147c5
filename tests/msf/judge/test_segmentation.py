"""Overlaps of label maps against torchmetrics, and pixels that are judged as pictures are."""

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from msf.judge import segmentation
from msf.judge.metrics import prediction_metrics
from msf.judge.resampling import Resamples
from msf.judge.segmentation import rows_of, segmentation_classes, segmentation_metrics
from msf.judge.uncertainty import Draws, make_prediction

NAMES = ("a", "b", "c", "never")
N, H, W = 6, 5, 4


def predicted(noise=1.5, n_present=3, seed=0):
    """Return a prediction of label maps and the true ones; the last class is neither there nor predicted."""
    import dataclasses

    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, n_present, (N, H, W), generator=generator)
    distance = torch.rand(N * H * W, len(NAMES), generator=generator, dtype=torch.float64) * noise
    distance += 1 - torch.nn.functional.one_hot(maps.flatten(), len(NAMES))
    distance[:, 3] += 9
    votes = torch.softmax(-distance, 1)
    draws = Draws(class_distance=distance, distance_std=distance * 0, votes=votes, pixel_votes=votes)
    prediction = make_prediction(draws, n_samples=4, nfe=1, micro_batch=1)
    return dataclasses.replace(prediction, map_shape=(H, W)), maps


def test_overlaps_are_those_of_torchmetrics():
    prediction, maps = predicted()
    figures = segmentation_metrics(prediction, maps, class_names=NAMES)
    label = prediction.maps(prediction.label)
    assert label.shape == (N, H, W)
    iou = multiclass_jaccard_index(label, maps, 4, average=None)
    dice = multiclass_f1_score(label.flatten(), maps.flatten(), 4, average=None)
    for number, name in enumerate(NAMES[:3]):
        assert figures["iou"][name] == pytest.approx(float(iou[number]), abs=1e-6)
        assert figures["dice"][name] == pytest.approx(float(dice[number]), abs=1e-6)
    assert figures["iou"]["never"] is None
    expected = jaccard_score(maps.flatten(), label.flatten(), average="macro", labels=[0, 1, 2])
    assert figures["mean_iou"] == pytest.approx(expected, abs=1e-12)
    assert figures["pixel_accuracy"] == pytest.approx(float((label == maps).double().mean()))
    assert (figures["n_images"], figures["n_pixels"]) == (N, N * H * W)


def test_few_pixels_are_all_judged_as_pictures_are():
    prediction, maps = predicted()
    figures = segmentation_metrics(prediction, maps)
    of_rows = prediction_metrics(prediction, maps.flatten())
    assert figures["n_pixels_judged"] == N * H * W
    for name in ("nll", "ece", "aurc", "accuracy", "scores"):
        assert figures[name] == of_rows[name]


def test_of_many_pixels_some_are_judged_and_all_count_in_the_overlaps(monkeypatch):
    prediction, maps = predicted()
    whole = segmentation_metrics(prediction, maps)
    monkeypatch.setattr(segmentation, "MOST_JUDGED", 50)
    some = segmentation_metrics(prediction, maps, seed=1)
    assert some["n_pixels_judged"] == 50
    assert some["mean_iou"] == whole["mean_iou"]
    assert some["nll"] != whole["nll"]
    assert segmentation_metrics(prediction, maps, seed=1) == some
    assert segmentation_metrics(prediction, maps, seed=2) != some


def test_all_right_is_one_and_all_wrong_is_zero():
    prediction, maps = predicted(noise=0.0)
    figures = segmentation_metrics(prediction, maps)
    assert figures["mean_iou"] == figures["mean_dice"] == figures["pixel_accuracy"] == 1
    figures = segmentation_metrics(prediction, (maps + 1) % 3)
    assert figures["mean_iou"] == figures["pixel_accuracy"] == 0


def test_intervals_come_from_whole_pictures():
    prediction, maps = predicted()
    figures = segmentation_classes(prediction, maps, NAMES, Resamples(N, 200, 0))
    plain = segmentation_metrics(prediction, maps, class_names=NAMES)
    assert np.array(figures["confusion_matrix"]["counts"]).sum() == N * H * W
    for entry in figures["per_class"][:3]:
        assert entry["iou"]["value"] == pytest.approx(plain["iou"][entry["class"]])
        assert entry["iou"]["low"] <= entry["iou"]["value"] <= entry["iou"]["high"]
    assert figures["per_class"][3]["iou"] == {"value": None, "low": None, "high": None}
    assert figures["overall"]["mean_dice"]["value"] == pytest.approx(plain["mean_dice"])
    # One wrong picture among right ones: no resample has a part of it.
    right, maps = predicted(noise=0.0)
    maps = maps.clone()
    maps[0] = (maps[0] + 1) % 3
    accuracy = segmentation_classes(right, maps, NAMES, Resamples(N, 200, 0))["overall"]["pixel_accuracy"]
    assert accuracy["value"] == pytest.approx(5 / 6)
    assert accuracy["low"] == pytest.approx(3 / 6)


def test_rows_are_no_maps_any_more():
    prediction, _ = predicted()
    some = rows_of(prediction, torch.tensor([3, 7]))
    assert len(some) == 2
    assert torch.equal(some.class_distance, prediction.class_distance[[3, 7]])
    with pytest.raises(ValueError, match="maps only where pixels have classes"):
        some.maps(some.label)


def test_maps_of_another_shape_or_type_are_refused():
    prediction, maps = predicted()
    with pytest.raises(ValueError, match="as they were predicted"):
        segmentation_metrics(prediction, maps[:, :-1])
    with pytest.raises(TypeError, match="int64"):
        segmentation_metrics(prediction, maps.byte())
