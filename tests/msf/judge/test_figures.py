"""Figures say what they are of: distances or probabilities, probabilities or votes, finite or not at all."""

import dataclasses
import json

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_calibration_error,
)

from msf.judge.intervals import metric_intervals
from msf.judge.metrics import HEADLINES, SUMMARY, prediction_metrics
from msf.judge.resampling import Resamples
from msf.judge.uncertainty import Draws, entropy, make_prediction


def prediction(n_classes=3, *, votes=False, nfe=1, n_samples=8, n=40, stopped_by=None):
    generator = torch.Generator().manual_seed(0)
    distance = torch.rand(n, n_classes, generator=generator)
    probability = torch.softmax(torch.randn(n, n_classes, generator=generator), 1)
    code = {} if votes else {"code_probability": probability, "code_entropy": entropy(probability)}
    draws = Draws(
        class_distance=distance, distance_std=0.1 * distance, votes=probability, pixel_votes=probability,
        stopped_by=stopped_by, **code,
    )  # fmt: skip
    return make_prediction(draws, n_samples=n_samples, nfe=nfe, micro_batch=4)


def labels(n_classes, n=40):
    return torch.randint(0, n_classes, (n,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_both_areas_are_given_of_distances_and_of_probabilities(n_classes):
    given, true = prediction(n_classes), labels(n_classes)
    metrics = prediction_metrics(given, true)
    for suffix, scores in (("", -given.class_distance), ("_of_probability", given.probability)):
        by_class = [roc_auc_score((true == k).numpy(), scores[:, k].double().numpy()) for k in range(n_classes)]
        mean = sum(by_class) / n_classes
        assert metrics[f"auc_macro_ovr{suffix}"] == pytest.approx(mean, abs=1e-12)
        assert metrics[f"auc_medmnist{suffix}"] == pytest.approx(by_class[-1] if n_classes == 2 else mean, abs=1e-12)
    assert metrics["auc_macro_ovr"] != metrics["auc_macro_ovr_of_probability"]
    assert metrics.keys() >= set(HEADLINES) >= set(SUMMARY)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"votes": True}, "votes after one evaluation are no probabilities"),
        ({"votes": True, "n_samples": torch.full((40,), 8)}, "votes after one evaluation are no probabilities"),
        ({"votes": True, "nfe": 4, "n_samples": 1}, "a single draw"),
        ({"votes": True, "nfe": 4}, None),
        ({"votes": True, "nfe": 4, "stopped_by": "votes"}, "makes its share too large"),
        ({"n_samples": torch.full((40,), 8)}, "ended by a stopping rule"),
        ({}, None),
    ],
)
def test_votes_that_are_no_probabilities_are_said_so(options, word):
    warnings = prediction_metrics(prediction(**options), labels(3))["warnings"]
    assert [word in text for text in warnings] == ([True] if word else [])


@pytest.mark.parametrize("field", ["class_distance", "probability"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_figures_of_what_is_not_finite_are_refused(field, value):
    values = getattr(prediction(), field).clone()
    values[[7, 9], 1] = value
    broken = dataclasses.replace(prediction(), **{field: values})
    with pytest.raises(ValueError, match="must be finite .* fails for 2 of 40 pictures, .* number 7"):
        prediction_metrics(broken, labels(3))


def test_figures_of_what_is_no_distribution_are_refused():
    broken = dataclasses.replace(prediction(), probability=torch.zeros(40, 3))
    with pytest.raises(ValueError, match="sum to one; this fails for 40 of 40"):
        prediction_metrics(broken, labels(3))


def one_hot(classes, n_classes=3):
    return torch.nn.functional.one_hot(classes, n_classes).double()


def given(probability, *, n_samples=8):
    """Return a prediction whose votes, distances and probabilities say the same."""
    draws = Draws(
        class_distance=1 - probability, distance_std=0 * probability, votes=probability, pixel_votes=probability
    )
    return make_prediction(draws, n_samples=n_samples, nfe=4, micro_batch=1)


@pytest.mark.parametrize(
    ("kind", "accuracy", "aurc", "augrc", "brier", "ece"),
    [
        ("all right", 1.0, 0.0, 0.0, 0.0, 0.0),
        ("all wrong", 0.0, 1.0, 0.5, 2.0, 1.0),
        ("one image", 1.0, 0.0, 0.0, 0.0, 0.0),
        ("one class", 0.5, 0.5, 0.25, 1.0, 0.5),
        ("ties", 1 / 3, 2 / 3, 1 / 3, 2 / 3, 0.0),
    ],
)
def test_degenerate_pictures_have_the_figures_that_follow_by_hand(kind, accuracy, aurc, augrc, brier, ece):
    labels = torch.arange(12) % 3
    probability = {"all right": one_hot(labels), "all wrong": one_hot((labels + 1) % 3)}.get(kind)
    if kind == "one image":
        labels, probability = labels[:1], one_hot(labels[:1])
    elif kind == "one class":
        labels, probability = torch.zeros(12, dtype=torch.int64), one_hot(torch.arange(12) % 2)
    elif kind == "ties":
        probability = torch.full((12, 3), 1 / 3, dtype=torch.float64)
    metrics = prediction_metrics(given(probability), labels)
    # Every score is a constant here: there is no information in any of them.
    for name, score in metrics["scores"].items():
        assert score["aurc"] == pytest.approx(aurc, abs=1e-12), name
        assert score["augrc"] == pytest.approx(augrc, abs=1e-12), name
        assert score["accuracy_at_0.5"] == pytest.approx(accuracy, abs=1e-12), name
        assert score["coverage_at_0.1"] == (accuracy == 1), name
        assert score["error_auroc"] == (None if accuracy in (0, 1) else 0.5), name
    assert metrics["accuracy"] == pytest.approx(accuracy)
    assert metrics["brier"] == pytest.approx(brier, abs=1e-12)
    assert metrics["ece"] == pytest.approx(ece, abs=1e-12)
    assert metrics["ece_adaptive"] == pytest.approx(ece, abs=1e-12)
    smoothed = (8 * probability + 0.5) / (8 + 1.5)
    expected = log_loss(labels.numpy(), smoothed.numpy(), labels=[0, 1, 2])
    assert metrics["nll"] == pytest.approx(expected, abs=1e-12)
    json.dumps(metrics, allow_nan=False)
    found = metric_intervals(given(probability), labels, Resamples(len(labels), 10, 0))
    assert found["overall"]["brier"]["value"] == pytest.approx(brier, abs=1e-12)
    assert found["score_intervals"]["margin"]["aurc"]["value"] == pytest.approx(aurc, abs=1e-12)
    json.dumps(found, allow_nan=False)


def test_figures_equal_those_of_torchmetrics():
    predicted, true = prediction(4, n=300), labels(4, 300)
    metrics = prediction_metrics(predicted, true)
    probability = predicted.probability.double()
    assert metrics["accuracy"] == pytest.approx(float((predicted.label == true).double().mean()), abs=1e-12)
    recall = multiclass_accuracy(predicted.label, true, num_classes=4, average="macro")
    assert metrics["balanced_accuracy"] == pytest.approx(float(recall), abs=1e-6)
    auc = multiclass_auroc(probability, true, num_classes=4, average="macro")
    assert metrics["auc_macro_ovr_of_probability"] == pytest.approx(float(auc), abs=1e-6)
    ece = multiclass_calibration_error(probability, true, num_classes=4, n_bins=15, norm="l1")
    assert metrics["ece"] == pytest.approx(float(ece), abs=1e-6)
    rows = probability / probability.sum(1, keepdim=True)  # the sums of single precision are not quite one
    assert metrics["nll"] == metrics["nll_unsmoothed"] == pytest.approx(log_loss(true, rows), abs=1e-6)
