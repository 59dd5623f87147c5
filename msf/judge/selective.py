"""Selective prediction: how the error rate falls when the most uncertain pictures are referred to a person.

Every function takes a score and whether the prediction was wrong, so any uncertainty score can be judged, not only a
probability. Pictures are ranked by score, surest first. Equal scores have no order: every number is the expectation
over all orders of them, in which errors grow linearly inside a tie. So numbers do not depend on the order of the rows,
and a score without information has the error rate as its area. A threshold on the score reaches the ends of ties only.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Room for the rounding of `coverage * N` to a whole number of pictures, and of an expected error rate.
_COUNT_SLACK = 1e-9
_RISK_SLACK = 1e-12


class RiskCoverageCurve(NamedTuple):
    """The error rate at every possible coverage.

    Args:
        coverage: Kept share of the pictures, k / N for k = 1 ... N; [N], fp64, in (0, 1].
        selective_risk: Error rate among the k surest pictures, expected over the orders of ties; [N], fp64, in [0, 1].
        ends_tie: Whether a threshold on the score keeps exactly these pictures; [N], bool.
    """

    coverage: Tensor
    selective_risk: Tensor
    ends_tie: Tensor


def risk_coverage_curve(score: Tensor, is_error: Tensor) -> RiskCoverageCurve:
    """Return the error rate of the surest part of the pictures, for every size of that part.

    `selective_risk[k - 1] = E(k) / k`, `coverage[k - 1] = k / N`. E(k) is the number of errors among the k lowest
    scores; j pictures into a tie of g with e errors it is that before the tie plus `j e / g`.

    Args:
        score: Uncertainty of each prediction, higher = more uncertain; [N], any real dtype, no NaN.
        is_error: Whether each prediction is wrong; [N], bool.

    Returns:
        The curve, in fp64 on the device of the arguments.

    Raises:
        TypeError: `is_error` is not boolean.
        ValueError: The arguments are empty, not of one axis, of different length, or the score holds NaN.

    Source:
        El-Yaniv and Wiener, On the foundations of noise-free selective classification, JMLR 2010.
    """
    errors, ends_tie = _cumulative_errors(score, is_error)
    kept = torch.arange(1, len(errors) + 1, dtype=torch.float64, device=errors.device)
    return RiskCoverageCurve(coverage=kept / len(errors), selective_risk=errors / kept, ends_tie=ends_tie)


def aurc(score: Tensor, is_error: Tensor) -> float:
    """Return the area under the risk-coverage curve: the mean of the selective risk over all N coverages.

    Args:
        score: Uncertainty of each prediction, higher = more uncertain; [N].
        is_error: Whether each prediction is wrong; [N], bool.

    Returns:
        The area, in [0, 1]; lower is better. A score without information, such as a constant, has the error rate.

    Raises:
        TypeError: `is_error` is not boolean.
        ValueError: See `risk_coverage_curve`.

    Source:
        Geifman, Uziel and El-Yaniv, Bias-reduced uncertainty estimation for deep neural classifiers, ICLR 2019.
    """
    return float(risk_coverage_curve(score, is_error).selective_risk.mean())


def e_aurc(score: Tensor, is_error: Tensor) -> float:
    """Return the excess of `aurc` over the best possible ranking of the same errors.

    The best ranking has all m errors last: `best = (1/N) sum_{j=1..m} j / (N - m + j)`. It is summed exactly, not
    approximated by `r + (1 - r) ln(1 - r)`, so a perfect score has an excess of zero whatever N is.

    Args:
        score: Uncertainty of each prediction, higher = more uncertain; [N].
        is_error: Whether each prediction is wrong; [N], bool.

    Returns:
        The excess, >= 0; lower is better.

    Raises:
        TypeError: `is_error` is not boolean.
        ValueError: See `risk_coverage_curve`.

    Source:
        Geifman, Uziel and El-Yaniv, Bias-reduced uncertainty estimation for deep neural classifiers, ICLR 2019.
    """
    # The errors themselves are the perfect score. The difference of two equal sums is exactly zero.
    return aurc(score, is_error) - aurc(is_error, is_error)


def augrc(score: Tensor, is_error: Tensor) -> float:
    """Return the area under the generalised risk-coverage curve: the risk of an error that nobody looks at.

    The generalised risk at coverage k / N is (errors among the k surest) / N, that is the probability that a picture
    is both kept and wrong; the area is taken by the trapezoidal rule from the origin. It equals
    `(1 - AUROC) a (1 - a) + (1 - a)^2 / 2`, with the accuracy a and the AUROC of the score as a detector of errors (a
    tie of an error and a correct prediction counts one half).

    Args:
        score: Uncertainty of each prediction, higher = more uncertain; [N].
        is_error: Whether each prediction is wrong; [N], bool.

    Returns:
        The area, in [0, 0.5]; lower is better.

    Raises:
        TypeError: `is_error` is not boolean.
        ValueError: See `risk_coverage_curve`.

    Source:
        Traub et al., Overcoming common flaws in the evaluation of selective classification systems, NeurIPS 2024.
    """
    generalised_risk = _cumulative_errors(score, is_error)[0] / len(score)
    from_origin = torch.cat([generalised_risk.new_zeros(1), generalised_risk])
    return float(torch.trapezoid(from_origin) / len(score))


def risk_at_coverage(score: Tensor, is_error: Tensor, coverage: float) -> float:
    """Return the error rate when at least the share `coverage` of the pictures is kept, surest first.

    Args:
        score: Uncertainty of each prediction, higher = more uncertain; [N].
        is_error: Whether each prediction is wrong; [N], bool.
        coverage: Wanted share of kept pictures, in (0, 1]; rounded up to whole pictures.

    Returns:
        The selective risk, in [0, 1]; where that many pictures end inside a tie, its expectation over the tie.

    Raises:
        TypeError: `is_error` is not boolean.
        ValueError: `coverage` is outside (0, 1], or see `risk_coverage_curve`.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be in (0, 1]; got {coverage!r}")
    curve = risk_coverage_curve(score, is_error)
    kept = max(1, math.ceil(coverage * len(score) - _COUNT_SLACK))
    return float(curve.selective_risk[kept - 1])


def coverage_at_risk(score: Tensor, is_error: Tensor, risk: float) -> float:
    """Return the largest share of pictures that can be kept with an error rate of at most `risk`.

    Args:
        score: Uncertainty of each prediction, higher = more uncertain; [N].
        is_error: Whether each prediction is wrong; [N], bool.
        risk: Largest accepted error rate among the kept pictures, in [0, 1].

    Returns:
        The coverage, in [0, 1]; 0 when even the surest picture alone exceeds the risk. Inside a tie the expected error
        rate counts. It is chosen with the labels at hand, so it describes this data set and promises nothing about the
        next; `msf.judge.referral` does.

    Raises:
        TypeError: `is_error` is not boolean.
        ValueError: `risk` is outside [0, 1], or see `risk_coverage_curve`.
    """
    if not 0 <= risk <= 1:
        raise ValueError(f"risk must be in [0, 1]; got {risk!r}")
    curve = risk_coverage_curve(score, is_error)
    allowed = curve.coverage[curve.selective_risk <= risk + _RISK_SLACK]
    return float(allowed[-1]) if len(allowed) else 0.0


def _cumulative_errors(score: Tensor, is_error: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many of the k surest predictions are wrong in expectation, for k = 1 ... N, and where ties end."""
    if is_error.dtype != torch.bool:
        raise TypeError(f"is_error must be bool; got {is_error.dtype}")
    if score.ndim != 1 or is_error.shape != score.shape or len(score) == 0:
        raise ValueError(
            f"score and is_error must be [N] with the same N >= 1; got {list(score.shape)} and {list(is_error.shape)}"
        )
    if score.isnan().any():
        raise ValueError(f"score must not hold NaN; got {int(score.isnan().sum())} of {len(score)}")
    ranking = torch.argsort(score, stable=True)
    _, tie, size = torch.unique_consecutive(score[ranking], return_inverse=True, return_counts=True)
    last = size.cumsum(0)
    up_to_tie = is_error[ranking].to(torch.float64).cumsum(0)[last - 1]  # errors up to the end of each tie
    before = torch.cat([up_to_tie.new_zeros(1), up_to_tie[:-1]])
    kept = torch.arange(1, len(score) + 1, device=score.device)
    inside = kept - (last - size)[tie]  # pictures of the own tie that are kept
    # The product before the quotient: whole numbers stay whole where a tie has a single picture or only errors.
    errors = before[tie] + inside * (up_to_tie - before)[tie] / size[tie]
    return errors, kept == last[tie]
