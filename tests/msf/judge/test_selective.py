import itertools
import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from sklearn.metrics import roc_auc_score

from msf.judge.selective import (
    augrc,
    aurc,
    coverage_at_risk,
    e_aurc,
    risk_at_coverage,
    risk_coverage_curve,
)


def _random_case(n, seed, n_levels=None):
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(n, generator=generator, dtype=torch.float64)
    if n_levels is not None:
        score = (score * n_levels).floor()
    return score, torch.rand(n, generator=generator) < 0.3


def _brute_force(score, is_error):
    """Count in plain Python and exact fractions: inside a tie every picture is wrong with the tie's own rate."""
    rate = {
        value: Fraction(sum(e for s, e in zip(score, is_error, strict=True) if s == value), score.count(value))
        for value in set(score)
    }
    wrong = [rate[value] for value in sorted(score)]
    n = len(wrong)
    risks = [sum(wrong[:k]) / k for k in range(1, n + 1)]
    generalised = [Fraction(0)] + [sum(wrong[:k]) / n for k in range(1, n + 1)]
    best = sorted(is_error)
    best_aurc = sum(Fraction(sum(best[:k]), k) for k in range(1, n + 1)) / n
    return {
        "risks": [float(risk) for risk in risks],
        "aurc": float(sum(risks) / n),
        "e_aurc": float(sum(risks) / n - best_aurc),
        "augrc": float(sum((a + b) / 2 for a, b in pairwise(generalised)) / n),
    }


@pytest.mark.parametrize("n", [1, 2, 7, 64, 211])
@pytest.mark.parametrize("n_levels", [None, 5])
def test_every_number_equals_a_brute_force_count(n, n_levels):
    score, is_error = _random_case(n, seed=n, n_levels=n_levels)
    expected = _brute_force(score.tolist(), is_error.tolist())
    curve = risk_coverage_curve(score, is_error)
    assert torch.allclose(curve.selective_risk, torch.tensor(expected["risks"], dtype=torch.float64), atol=1e-14)
    assert torch.allclose(curve.coverage, torch.arange(1, n + 1, dtype=torch.float64) / n, atol=1e-15)
    assert aurc(score, is_error) == pytest.approx(expected["aurc"], abs=1e-14)
    assert e_aurc(score, is_error) == pytest.approx(expected["e_aurc"], abs=1e-14)
    assert augrc(score, is_error) == pytest.approx(expected["augrc"], abs=1e-14)


def test_a_perfect_ranking_has_no_excess_and_the_closed_form_area():
    n, n_errors = 50, 12
    is_error = torch.arange(n) >= n - n_errors
    score = torch.arange(n, dtype=torch.float64)
    assert e_aurc(score, is_error) == 0.0
    closed_form = sum(j / (n - n_errors + j) for j in range(1, n_errors + 1)) / n
    assert aurc(score, is_error) == pytest.approx(closed_form, abs=1e-15)
    assert augrc(score, is_error) == pytest.approx((n_errors / n) ** 2 / 2, abs=1e-15)


def test_the_worst_ranking_has_errors_first():
    n, n_errors = 40, 10
    score = torch.arange(n, dtype=torch.float64)
    is_error = score < n_errors
    expected = (n_errors + sum(n_errors / k for k in range(n_errors + 1, n + 1))) / n
    assert aurc(score, is_error) == pytest.approx(expected, abs=1e-14)
    assert augrc(score, is_error) == pytest.approx((n_errors / n) * (1 - n_errors / n / 2), abs=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_augrc_equals_its_closed_form_in_auroc_and_accuracy(seed):
    score, is_error = _random_case(300, seed)
    accuracy = 1 - is_error.double().mean().item()
    auroc = roc_auc_score(is_error.numpy(), score.numpy())
    expected = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert augrc(score, is_error) == pytest.approx(expected, abs=1e-12)


def test_an_uninformative_score_has_the_error_rate_as_expected_area():
    is_error = torch.arange(20) < 6
    generator = torch.Generator().manual_seed(0)
    areas = [aurc(torch.rand(20, generator=generator), is_error) for _ in range(4000)]
    standard_error = torch.tensor(areas).std().item() / math.sqrt(len(areas))
    assert abs(sum(areas) / len(areas) - 0.3) < 4 * standard_error


def test_all_right_and_all_wrong_are_the_two_ends():
    score = torch.rand(9, generator=torch.Generator().manual_seed(1))
    for value, area, generalised in ((False, 0.0, 0.0), (True, 1.0, 0.5)):
        is_error = torch.full((9,), value)
        assert aurc(score, is_error) == area
        assert e_aurc(score, is_error) == 0.0
        assert augrc(score, is_error) == pytest.approx(generalised, abs=1e-15)


def _expected_over_orders(score, is_error, figure):
    """Average a figure over all orders of the rows, made strict by telling ties apart in that order."""
    values = []
    for order in itertools.permutations(range(len(score))):
        rows = torch.tensor(order)
        strict = torch.argsort(torch.argsort(score[rows], stable=True))
        values.append(figure(strict.double(), is_error[rows]))
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "figure", [aurc, e_aurc, augrc, lambda s, e: risk_at_coverage(s, e, 0.5), lambda s, e: risk_at_coverage(s, e, 0.8)]
)
def test_figures_are_the_mean_over_all_orders_of_ties(seed, figure):
    score, is_error = _random_case(6, seed, n_levels=3)
    assert figure(score, is_error) == pytest.approx(_expected_over_orders(score, is_error, figure), abs=1e-14)


@pytest.mark.parametrize("n_levels", [1, 2, 5])
def test_figures_do_not_depend_on_the_order_of_the_rows(n_levels):
    score, is_error = _random_case(5000, seed=3, n_levels=n_levels)
    shuffled = torch.randperm(5000, generator=torch.Generator().manual_seed(1))
    by_error = torch.argsort(is_error.int())
    for figure in (
        aurc,
        e_aurc,
        augrc,
        lambda s, e: risk_at_coverage(s, e, 0.3),
        lambda s, e: coverage_at_risk(s, e, 0.3),
    ):
        values = {figure(score[rows], is_error[rows]) for rows in (shuffled, by_error, by_error.flip(0))}
        assert len(values) == 1


@pytest.mark.parametrize("errors_first", [True, False])
def test_a_score_without_information_has_the_error_rate_as_its_area(errors_first):
    is_error = torch.arange(50) < 13 if errors_first else torch.arange(50) >= 37
    assert aurc(torch.zeros(50), is_error) == pytest.approx(0.26, abs=1e-14)
    assert augrc(torch.zeros(50), is_error) == pytest.approx(0.13, abs=1e-14)
    assert risk_at_coverage(torch.zeros(50), is_error, 0.1) == pytest.approx(0.26, abs=1e-14)
    assert coverage_at_risk(torch.zeros(50), is_error, 0.25) == 0.0
    assert coverage_at_risk(torch.zeros(50), is_error, 0.26) == 1.0


def test_thresholds_reach_the_ends_of_ties_only():
    curve = risk_coverage_curve(torch.tensor([2.0, 1.0, 1.0, 3.0, 3.0, 3.0]), torch.arange(6) > 3)
    assert curve.ends_tie.tolist() == [False, True, True, False, False, True]


def test_coverage_at_risk_goes_on_inside_a_tie_by_its_expected_errors():
    score = torch.arange(20) >= 10
    is_error = torch.arange(20) >= 15  # ten sure and right, then ten alike of which five are wrong
    # (j / 2) / (10 + j) <= 0.2 up to j = 6.
    assert coverage_at_risk(score, is_error, 0.2) == pytest.approx(0.8)


@pytest.mark.parametrize("n_levels", [2, 7])
def test_augrc_equals_its_closed_form_under_ties(n_levels):
    score, is_error = _random_case(300, 5, n_levels)
    a = 1 - is_error.double().mean().item()
    auroc = roc_auc_score(is_error.numpy(), score.numpy())
    assert augrc(score, is_error) == pytest.approx((1 - auroc) * a * (1 - a) + (1 - a) ** 2 / 2, abs=1e-12)


def test_risk_at_coverage_reads_the_curve_at_whole_pictures():
    score = torch.arange(10, dtype=torch.float32)
    is_error = torch.tensor([0, 0, 0, 1, 0, 0, 1, 0, 1, 1], dtype=torch.bool)
    assert risk_at_coverage(score, is_error, 1.0) == pytest.approx(0.4)
    assert risk_at_coverage(score, is_error, 0.7) == pytest.approx(2 / 7)
    assert risk_at_coverage(score, is_error, 0.61) == pytest.approx(2 / 7)
    assert risk_at_coverage(score, is_error, 1e-6) == 0.0


def test_coverage_times_n_is_not_rounded_up_by_floating_point():
    # 0.07 * 100 = 7.000000000000001 in floating point.
    score = torch.arange(100)
    is_error = score == 7
    assert risk_at_coverage(score, is_error, 0.07) == 0.0


def test_coverage_at_risk_takes_the_largest_coverage_that_meets_the_risk():
    score = torch.arange(10, dtype=torch.float32)
    is_error = torch.tensor([0, 0, 1, 0, 0, 0, 0, 0, 1, 1], dtype=torch.bool)
    assert coverage_at_risk(score, is_error, 0.125) == pytest.approx(0.8)
    assert coverage_at_risk(score, is_error, 0.0) == pytest.approx(0.2)
    assert coverage_at_risk(score, is_error, 1.0) == 1.0
    assert coverage_at_risk(-score, is_error, 0.2) == 0.0


def test_a_score_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"score and is_error must be \[N\].*\[3\] and \[4\]"):
        aurc(torch.zeros(3), torch.zeros(4, dtype=torch.bool))


def test_an_empty_score_is_refused():
    with pytest.raises(ValueError, match=r"N >= 1; got \[0\] and \[0\]"):
        augrc(torch.zeros(0), torch.zeros(0, dtype=torch.bool))


def test_a_nan_score_is_refused():
    with pytest.raises(ValueError, match="score must not hold NaN; got 1 of 2"):
        e_aurc(torch.tensor([math.nan, 1.0]), torch.tensor([True, False]))


def test_errors_that_are_not_boolean_are_refused():
    with pytest.raises(TypeError, match="is_error must be bool; got torch.int64"):
        aurc(torch.zeros(3), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("coverage", [0.0, 1.5, math.nan])
def test_a_coverage_out_of_range_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage must be in"):
        risk_at_coverage(torch.zeros(2), torch.tensor([True, False]), coverage)


@pytest.mark.parametrize("risk", [-0.1, 1.1, math.nan])
def test_a_risk_out_of_range_is_refused(risk):
    with pytest.raises(ValueError, match="risk must be in"):
        coverage_at_risk(torch.zeros(2), torch.tensor([True, False]), risk)
