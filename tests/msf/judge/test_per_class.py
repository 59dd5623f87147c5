"""Figures of single classes against scikit-learn's, and intervals that cover the truth."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, recall_score, roc_auc_score

from msf.judge import resampling
from msf.judge.per_class import per_class_metrics
from msf.judge.resampling import Resamples
from msf.judge.uncertainty import Draws, make_prediction

NAMES = ("a", "b", "c")


def predicted(n, seed=0, n_classes=3, noise=1.0, ties=False):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, n_classes, (n,), generator=generator)
    distance = torch.rand(n, n_classes, generator=generator, dtype=torch.float64) * noise
    distance += 1 - torch.nn.functional.one_hot(labels, n_classes)
    distance = (distance * 4).round() if ties else distance
    votes = torch.softmax(-distance, 1)
    draws = Draws(class_distance=distance, distance_std=distance * 0, votes=votes, pixel_votes=votes)
    return make_prediction(draws, n_samples=1, nfe=1, micro_batch=1), labels


@pytest.mark.parametrize("ties", [False, True])
def test_values_are_those_of_scikit_learn(ties):
    prediction, labels = predicted(200, noise=3.0, ties=ties)
    figures = per_class_metrics(prediction, labels, NAMES, Resamples(200, 10, 0))
    counts = confusion_matrix(labels, prediction.label)
    assert figures["confusion_matrix"] == {"classes": list(NAMES), "counts": counts.tolist()}
    recalls = recall_score(labels, prediction.label, average=None)
    for number, entry in enumerate(figures["per_class"]):
        assert entry["class"] == NAMES[number]
        assert entry["n"] == counts[number].sum()
        assert entry["recall"]["value"] == pytest.approx(recalls[number], abs=1e-12)
        others = np.delete(counts, number, 0)
        assert entry["specificity"]["value"] == pytest.approx(
            np.delete(others, number, 1).sum() / others.sum(), abs=1e-12
        )
        for name, score in (("auc", -prediction.class_distance), ("auc_of_probability", prediction.probability)):
            expected = roc_auc_score(labels == number, score[:, number])
            assert entry[name]["value"] == pytest.approx(expected, abs=1e-12)


def test_blocks_do_not_change_the_resamples(monkeypatch):
    prediction, labels = predicted(50, noise=3.0)
    whole = per_class_metrics(prediction, labels, NAMES, Resamples(50, 30, 5))
    monkeypatch.setattr(resampling, "_BLOCK_VALUES", 50 * 7)
    assert per_class_metrics(prediction, labels, NAMES, Resamples(50, 30, 5)) == whole
    assert per_class_metrics(prediction, labels, NAMES, Resamples(50, 30, 6)) != whole


def test_a_class_that_does_not_occur_has_no_figures():
    prediction, labels = predicted(40)
    labels[labels == 2] = 0
    entry = per_class_metrics(prediction, labels, NAMES, Resamples(40, 5, 0))["per_class"][2]
    assert (entry["n"], entry["recall"]["value"], entry["auc"]["value"]) == (0, None, None)
    assert entry["specificity"]["value"] is not None
