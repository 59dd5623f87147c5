"""Risk-coverage curves with bands: the curve itself, and how often a band holds the truth."""

import numpy as np
import pytest
import torch

from msf.judge.resampling import Resamples
from msf.judge.risk_bands import risk_band
from msf.judge.selective import risk_coverage_curve


def test_without_ties_the_curve_is_that_of_selective_prediction():
    rng = np.random.default_rng(0)
    score, is_error = rng.normal(size=200), rng.random(200) < 0.3
    band = risk_band(score, is_error, Resamples(200, 5, 0))
    curve = risk_coverage_curve(torch.tensor(score), torch.tensor(is_error))
    assert band.coverage[-1] == 1
    np.testing.assert_allclose(band.risk, curve.selective_risk[1::2].numpy(), atol=1e-12)


def test_inside_a_tie_errors_are_spread_evenly_whatever_the_order():
    is_error = np.array([True, False, False, True] * 25)
    band = risk_band(np.zeros(100), is_error, Resamples(100, 5, 0))
    np.testing.assert_allclose(band.risk, 0.5)
    again = risk_band(np.zeros(100), np.sort(is_error), Resamples(100, 5, 0))
    np.testing.assert_allclose(again.risk, band.risk)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_right_and_all_wrong_have_no_width(share):
    band = risk_band(np.arange(20.0), np.full(20, bool(share)), Resamples(20, 10, 0))
    for values in (band.risk, band.low, band.high):
        np.testing.assert_allclose(values, share)


def test_one_picture_has_a_curve():
    band = risk_band(np.zeros(1), np.array([True]), Resamples(1, 3, 0))
    np.testing.assert_allclose(band.risk, 1)


def test_bands_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        score = rng.random(150)
        is_error = rng.random(150) < 0.6 * score  # among the surest half the error rate is 0.15
        risk, low, high = risk_band(score, is_error, Resamples(150, 200, seed)).at(0.5)
        assert low <= risk <= high
        hits += low <= 0.15 <= high
    assert 86 <= hits <= 100  # 95 % of 100, within four standard deviations
