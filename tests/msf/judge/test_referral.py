"""The guarantee of referral, simulated where the risk of every threshold is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from msf.judge.referral import (
    ReferralRule,
    candidate_thresholds,
    certified,
    errors_allowed,
    fit_referral,
    kept_needed,
)


def test_the_allowed_errors_are_those_of_the_binomial_tail():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, risk, delta = int(rng.integers(0, 3000)), float(rng.uniform(0.001, 0.5)), float(rng.uniform(0.01, 0.5))
        k = errors_allowed(n, risk, delta)
        assert k < 0 or binom.cdf(k, n, risk) <= delta
        assert binom.cdf(k + 1, n, risk) > delta


@pytest.mark.parametrize(("risk", "delta"), [(0.02, 0.1), (0.1, 0.1), (0.0377, 0.05)])
def test_fewer_kept_pictures_than_needed_pass_never(risk, delta):
    n = kept_needed(risk, delta)
    assert (1 - risk) ** n <= delta < (1 - risk) ** (n - 1)
    score = np.zeros(n)
    assert certified(score, np.zeros(n, bool), np.array([0.0]), risk, delta) == 0
    assert certified(score[1:], np.zeros(n - 1, bool), np.array([0.0]), risk, delta) == -1


def test_known_reach_of_small_sets():
    # With no error among all kept, 78 pictures certify 3.8 % at 95 % confidence, 120 do 2.5 %, 524 do 0.57 %.
    for n, reach in ((78, 0.038), (120, 0.025), (524, 0.00571)):
        assert kept_needed(reach, 0.05) <= n < kept_needed(0.97 * reach, 0.05)


def test_the_sequence_stops_at_the_first_threshold_that_fails():
    score = np.arange(100.0)
    is_error = (score >= 40) & (score < 60)
    thresholds = np.array([30.0, 39, 50, 99])
    # 0 of 31 and 0 of 40 pass at 10 %; 11 of 51 fail, and what comes after is not looked at.
    assert certified(score, is_error, thresholds, 0.1, 0.1) == 1
    assert certified(score, is_error, thresholds[3:], 0.3, 0.1) == 0
    assert certified(score, ~is_error, thresholds, 0.1, 0.1) == -1


def test_candidates_are_scores_in_ascending_order_at_the_ends_of_ties():
    rng = np.random.default_rng(0)
    for placing in (rng.random(40), rng.integers(0, 3, 40).astype(float), np.zeros(1)):
        found = candidate_thresholds(placing, 160, 0.1, 0.1)
        assert np.isin(found, placing).all()
        assert (np.diff(found) > 0).all()
        assert found[-1] == placing.max()
        assert (placing <= found[0]).mean() * 160 >= kept_needed(0.1, 0.1)


def shapes(u):
    """Risk of a picture at rank u of three scores: good, of no use, and good only up to a half."""
    return {"good": 0.5 * u**3, "useless": 0.125 + 0 * u, "turning": np.where(u < 0.5, 0.02, 0.3 * (1.7 - u))}


@pytest.mark.parametrize(
    ("n", "shape"), [(120, "useless"), *((n, shape) for n in (78, 120, 524, 1712) for shape in ("good", "turning"))]
)
def test_the_risk_is_exceeded_in_at_most_delta_of_calibrations(n, shape):
    rng = np.random.default_rng(n)
    grid = (np.arange(20_000) + 0.5) / 20_000
    risk_up_to = np.cumsum(shapes(grid)[shape]) / np.arange(1, 20_001)
    n_found = n_violated = n_naive = 0
    for seed in range(1000):
        score = rng.random(n)
        is_error = rng.random(n) < shapes(score)[shape]
        rule = fit_referral(score, is_error, name="s", risk=0.1, delta=0.1, seed=seed)
        if rule.threshold is not None:
            n_found += 1
            n_violated += risk_up_to[int(rule.threshold * 20_000)] > 0.1
        order = np.argsort(score)
        rates = np.cumsum(is_error[order]) / np.arange(1, n + 1)
        naive = np.flatnonzero(rates <= 0.1)
        n_naive += len(naive) > 0 and risk_up_to[int(score[order][naive[-1]] * 20_000)] > 0.1
    # 100 are allowed on average, and three standard deviations of chance.
    assert n_violated <= 100 + 3 * math.sqrt(90)
    if shape == "good":
        assert n_found > {78: 450, 120: 800, 524: 980, 1712: 990}[n]
        assert n_naive > 400  # the largest share whose own error rate is low enough promises nothing


def test_groups_count_once():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 6)
    score, is_error = np.repeat(rng.random(50), 6), np.zeros(300, bool)
    alone = fit_referral(score, is_error, name="s", risk=0.02, groups=groups)
    assert alone.threshold is None
    assert alone.n_tested == 40
    assert fit_referral(score, is_error, name="s", risk=0.02).threshold is not None


@pytest.mark.parametrize("is_wrong", [False, True])
@pytest.mark.parametrize("score", [np.zeros(200), np.arange(200.0)], ids=["ties", "no ties"])
def test_all_right_and_all_wrong(is_wrong, score):
    rule = fit_referral(score, np.full(200, is_wrong), name="s", risk=0.05)
    if is_wrong:
        assert rule.threshold is None
        assert rule.n_needed is None
        with pytest.raises(ValueError, match="more pictures alone would not help"):
            rule.refers(score)
    else:
        assert not rule.refers(score[score <= rule.threshold]).any()
        assert rule.n_errors == 0


def test_too_few_pictures_say_how_many_are_needed_and_so_many_do():
    rng = np.random.default_rng(1)

    def pictures(n):
        score = rng.random(n)
        return score, rng.random(n) < 0.004 * score

    rule = fit_referral(*pictures(60), name="least_confidence", risk=0.02)
    assert rule.threshold is None
    with pytest.raises(ValueError, match=r"48 calibration pictures .* 114 without an error .* About \d+ calibration"):
        rule.refers(np.zeros(1))
    assert rule.n_needed > 140
    found = [fit_referral(*pictures(2 * rule.n_needed), name="s", risk=0.02).threshold for _ in range(20)]
    assert sum(threshold is not None for threshold in found) > 10


def test_a_picture_without_a_number_is_referred():
    rule = ReferralRule(
        score="s", risk=0.1, delta=0.1, threshold=0.5, n_tested=50, n_kept=40, n_errors=0, n_needed=50
    )  # fmt: skip
    assert rule.refers(np.array([0.5, 0.50001, np.nan])).tolist() == [False, True, True]
    assert ReferralRule.from_dict(rule.to_dict()) == rule


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"risk": 0.0}, r"risk and delta must be in \(0, 1\); got 0.0 and 0.1"),
        ({"delta": 1.0}, r"got 0.1 and 1.0"),
        ({"score": np.array([0.1])}, r"score must be \[N\] with N >= 2"),
        ({"score": np.array([0.1, np.nan])}, "without NaN"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    given = {"score": np.array([0.1, 0.2]), "is_error": np.array([False, True]), "name": "s", "risk": 0.1} | change
    with pytest.raises(ValueError, match=message):
        fit_referral(**given)
