import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from msf.judge.reliability import bin_numbers, calibration_error, reliability_diagram


def case(n=500, seed=0):
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet([0.7, 0.7, 0.7], n)
    labels = np.array([rng.choice(3, p=row) for row in probability])
    return probability, labels, probability.max(1), probability.argmax(1) == labels


def test_equal_width_equals_torchmetrics_where_no_confidence_is_one():
    probability, labels, confidence, is_right = case()
    for n_bins in (1, 10, 15):
        expected = multiclass_calibration_error(
            torch.from_numpy(probability), torch.from_numpy(labels), num_classes=3, n_bins=n_bins, norm="l1"
        )
        assert calibration_error(confidence, is_right, n_bins=n_bins) == pytest.approx(float(expected), abs=1e-6)


def test_the_last_bin_is_closed():
    confidence = np.array([1.0, 1.0, 0.95, 0.0, 1 / 15])
    assert bin_numbers(confidence, "equal_width").tolist() == [14, 14, 14, 0, 1]
    # One bin of three pictures: |2/3 - 2.95/3|; as a bin of their own the ones would give |1/2 - 1| 2 + |1 - 0.95|.
    is_right = np.array([True, False, True])
    assert calibration_error(confidence[:3], is_right) == pytest.approx(0.95 / 3, abs=1e-15)


def test_adaptive_bins_hold_equal_numbers_and_keep_ties_together():
    confidence = np.random.default_rng(0).permutation(np.linspace(0.4, 0.9, 60))
    numbers = bin_numbers(confidence, "adaptive")
    assert np.bincount(numbers).tolist() == [4] * 15
    assert (np.diff(numbers[np.argsort(confidence)]) >= 0).all()
    tied = np.array([0.5] * 50 + [0.9] * 10)
    assert len({*bin_numbers(tied, "adaptive")[:50]}) == 1
    assert bin_numbers(np.ones(7), "adaptive").tolist() == [7] * 7


def test_adaptive_error_equals_a_sum_over_sorted_parts():
    _, _, confidence, is_right = case(n=300)
    order = np.argsort(confidence)
    parts = np.split(order, 15)
    expected = sum(abs(is_right[part].mean() - confidence[part].mean()) * len(part) / 300 for part in parts)
    assert calibration_error(confidence, is_right, "adaptive") == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("rule", ["equal_width", "adaptive"])
def test_the_error_does_not_depend_on_the_order_of_rows_with_ties(rule):
    rng = np.random.default_rng(1)
    confidence, is_right = rng.integers(4, 9, 100) / 8, rng.random(100) < 0.7
    values = []
    for seed in range(5):
        rows = np.random.default_rng(seed).permutation(100)
        values.append(calibration_error(confidence[rows], is_right[rows], rule))
    assert max(values) - min(values) < 1e-14


@pytest.mark.parametrize("rule", ["equal_width", "adaptive"])
def test_the_diagram_adds_up_to_the_error(rule):
    _, _, confidence, is_right = case()
    bins = reliability_diagram(confidence, is_right, rule)
    assert sum(entry["n"] for entry in bins) == 500
    total = sum(entry["n"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins) / 500
    assert total == pytest.approx(calibration_error(confidence, is_right, rule), abs=1e-14)
    for entry in bins:
        assert entry["low"] - 1e-12 <= entry["confidence"] <= entry["high"] + 1e-12


@pytest.mark.parametrize("rule", ["equal_width", "adaptive"])
@pytest.mark.parametrize(("right", "error"), [(True, 0.0), (False, 1.0)])
def test_certain_predictions_all_right_or_all_wrong(rule, right, error):
    for n in (1, 20):
        assert calibration_error(np.ones(n), np.full(n, right), rule) == pytest.approx(error, abs=1e-15)
        assert len(reliability_diagram(np.ones(n), np.full(n, right), rule)) == 1


def test_perfect_probabilities_have_the_error_of_chance_alone():
    _, _, confidence, is_right = case(n=20_000)
    # The mean of |normal| in a bin of n is sqrt(2 p (1 - p) / (pi n)); summed over 15 bins, at most:
    bound = math.sqrt(2 * 0.25 / math.pi * 15 / 20_000)
    for rule in ("equal_width", "adaptive"):
        assert calibration_error(confidence, is_right, rule) < 1.5 * bound
