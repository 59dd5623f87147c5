import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from msf.judge.detection import detection_metrics
from msf.judge.resampling import Resamples
from msf.judge.uncertainty import UNCERTAINTY_SCORES, Draws, make_prediction


def predicted(n, seed, shift=0.0, n_samples=8):
    generator = torch.Generator().manual_seed(seed)
    distance = torch.rand(n, 3, generator=generator, dtype=torch.float64) + shift
    counts = torch.distributions.Multinomial(n_samples, torch.softmax(-3 * distance, 1))
    torch.manual_seed(seed)
    votes = counts.sample() / n_samples
    return make_prediction(
        Draws(class_distance=distance, distance_std=0 * distance, votes=votes, pixel_votes=votes),
        n_samples=n_samples, nfe=8, micro_batch=1,
    )  # fmt: skip


def test_every_score_has_the_figures_of_scikit_learn_ties_included():
    own, foreign = predicted(150, 0), predicted(90, 1, shift=0.2)
    found = detection_metrics(own, foreign, Resamples(150, 20, 0), Resamples(90, 20, 1))
    assert found.keys() == UNCERTAINTY_SCORES.keys()
    for name, entry in found.items():
        values = np.concatenate([own.scores()[name].numpy(), foreign.scores()[name].numpy()])
        is_foreign = np.arange(240) >= 150
        assert entry["auroc"]["value"] == pytest.approx(roc_auc_score(is_foreign, values), abs=1e-12)
        # Own pictures are the positives of the false positive rate: kept are scores up to a threshold.
        wrongly_kept, kept, _ = roc_curve(~is_foreign, -values, drop_intermediate=False)
        assert entry["fpr95"]["value"] == pytest.approx(wrongly_kept[kept >= 0.95][0], abs=1e-12)
        assert entry["auroc"]["low"] <= entry["auroc"]["value"] <= entry["auroc"]["high"]


def test_what_is_the_same_cannot_be_told_apart_and_what_is_far_can():
    same = detection_metrics(predicted(50, 0), predicted(50, 0), Resamples(50, 5, 0), Resamples(50, 5, 1))
    assert {entry["auroc"]["value"] for entry in same.values()} == {0.5}
    far = detection_metrics(predicted(1, 0), predicted(1, 0, shift=5.0), Resamples(1, 5, 0), Resamples(1, 5, 1))
    assert far["nearest_distance"] == {
        "auroc": {"value": 1.0, "low": 1.0, "high": 1.0}, "fpr95": {"value": 0.0, "low": 0.0, "high": 0.0},
    }  # fmt: skip
