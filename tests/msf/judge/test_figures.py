"""Figures say what they are of: distances or probabilities, probabilities or votes, finite or not at all."""

import dataclasses

import pytest
import torch
from sklearn.metrics import roc_auc_score

from msf.judge.metrics import HEADLINES, SUMMARY, prediction_metrics
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
