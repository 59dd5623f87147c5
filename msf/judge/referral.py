"""Referral with a bounded risk: a threshold on a score below which predictions may be kept, with a guarantee.

The threshold is fixed beforehand, so that what becomes of a picture does not depend on its company. The guarantee is
about the calibration: with probability `1 - delta` over the calibration pictures, the error rate among all pictures
that the threshold keeps is at most `risk`. It holds for pictures drawn as those were.

How: some calibration pictures place candidate thresholds, without their labels, and the others test them. For a
threshold that is fixed before, errors among the n tested pictures that it keeps are binomial, with its true risk as
the rate; the hypothesis that this exceeds `risk` has the p-value `P(Binomial(n, risk) <= errors)`. Thresholds are
tested from the strictest on, in an order that is fixed too, until one is not rejected at level `delta`; the last
rejected one is taken. So a wrong one is taken only if the first wrong one in the order was rejected, which has
probability `delta` at most, without any correction for their number and whatever the shape of the risk.

Source: Angelopoulos et al., Learn then test, arXiv 2110.01052 (fixed-sequence testing); Geifman and El-Yaniv, Selective
classification for deep neural networks, NeurIPS 2017 (the exact binomial bound).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from msf.judge.resampling import Array

N_CANDIDATES = 20
_PLACING_SHARE = 0.2
_MOST_PLACING = 200
_MOST_NEEDED = 10**6
_ROOM = 2.5


@dataclass(frozen=True, kw_only=True)
class ReferralRule:
    """A threshold, and what it was tested on; pictures with a score above it are referred to a person.

    Args:
        score: Name of the uncertainty score.
        risk: Largest accepted error rate among the kept pictures.
        delta: Largest accepted probability, over calibration pictures, that it is exceeded.
        threshold: Largest score that is kept; None: no threshold passed the test.
        n_tested: Pictures that tested thresholds; of a patient, one.
        n_kept: Tested pictures at or below the threshold; where there is none, at or below the strictest one.
        n_errors: How many of those are wrong.
        n_needed: Calibration pictures that would probably do; None: more pictures alone would not.
    """

    score: str
    risk: float
    delta: float
    threshold: float | None
    n_tested: int
    n_kept: int
    n_errors: int
    n_needed: int | None

    def refers(self, score: Array) -> Array:
        """Return which pictures to refer to a person; bool [N].

        Raises:
            ValueError: There is no threshold.
        """
        if self.threshold is None:
            raise ValueError(self.why_none())
        referred: Array = ~(score <= self.threshold)
        return referred

    def why_none(self) -> str:
        """Return a sentence on why there is no threshold, and how many pictures it would take."""
        least = kept_needed(self.risk, self.delta)
        text = (
            f"no threshold on {self.score} keeps the risk at {self.risk:g} with confidence {1 - self.delta:g}: of "
            f"{self.n_tested} calibration pictures that tested, {self.n_kept} were kept by the strictest one, with "
            f"{self.n_errors} errors; {least} without an error are the least"
        )
        if self.n_needed is None:
            return f"{text}, and the error rate seen was never low enough: more pictures alone would not help"
        return f"{text}. About {self.n_needed} calibration pictures are needed"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReferralRule:
        """Build from plain values."""
        return cls(**values)


def fit_referral(
    score: Array,
    is_error: Array,
    *,
    name: str,
    risk: float,
    delta: float = 0.1,
    groups: Array | None = None,
    seed: int = 0,
) -> ReferralRule:
    """Return the largest threshold that passes the test; see the module.

    Args:
        score: Uncertainty of calibration pictures that chose nothing of the network; [N], N >= 2, no NaN.
        is_error: Whether each prediction is wrong; [N], bool.
        name: Of the score.
        risk: Largest accepted error rate among the kept pictures, in (0, 1).
        delta: Largest accepted probability that it is exceeded, in (0, 1).
        groups: What pictures share, such as the patient; [N]. Pictures of a group are not independent, so one of
            each, chosen at random, is used. None: all are.
        seed: Of the choice of pictures that place thresholds, and of those that stand for their group.

    Raises:
        ValueError: Numbers out of range, or fewer than two pictures.
    """
    if not (0 < risk < 1 and 0 < delta < 1):
        raise ValueError(f"risk and delta must be in (0, 1); got {risk!r} and {delta!r}")
    if len(score) < 2 or score.shape != is_error.shape or np.isnan(score).any():
        raise ValueError(f"score must be [N] with N >= 2, one per prediction, without NaN; got {list(score.shape)}")
    order = np.random.default_rng(seed).permutation(len(score))
    if groups is not None:
        order = order[np.sort(np.unique(groups[order], return_index=True)[1])]
    n_placing = min(max(1, round(_PLACING_SHARE * len(order))), _MOST_PLACING)
    placing, testing = order[:n_placing], order[n_placing:]
    candidates = candidate_thresholds(score[placing], len(testing), risk, delta)
    tested = score[testing], is_error[testing], candidates, risk, delta
    place = certified(*tested)
    kept = score[testing] <= candidates[max(place, 0)]
    return ReferralRule(
        score=name,
        risk=risk,
        delta=delta,
        threshold=float(candidates[place]) if place >= 0 else None,
        n_tested=len(testing),
        n_kept=int(kept.sum()),
        n_errors=int((kept & is_error[testing]).sum()),
        n_needed=len(order) if place >= 0 else _expected_need(*tested),
    )


def candidate_thresholds(placing: Array, n_testing: int, risk: float, delta: float) -> Array:
    """Return thresholds to test, ascending and different, by the scores of pictures that do not test them.

    The strictest one shall keep two and a half times as many tested pictures as pass without an error, which leaves
    room for a few, where that is less than half of them; but at least as many as pass without an error. Room is left
    for chance, too. From there on up to 20 go in equal steps of the kept share. Each is the score of a picture, so that
    it lies at the end of a tie.

    Args:
        placing: Scores; [M], M >= 1.
        n_testing: Pictures that will test.
        risk: As for `fit_referral`.
        delta: Likewise.
    """
    ordered, least = np.sort(placing), kept_needed(risk, delta) / max(n_testing, 1)

    def with_room(share: float, n_deviations: float) -> float:
        """Add deviations of the binomial number that is kept and of where the threshold comes to lie."""
        share = min(share, 1.0)
        return share + n_deviations * math.sqrt(share * (1 - share) * (1 / max(n_testing, 1) + 1 / len(placing)))

    first = max(with_room(least, 1), min(0.5, with_room(_ROOM * least, 2)))
    shares = np.linspace(min(first, 1.0), 1.0, N_CANDIDATES)
    ranks = np.minimum(np.ceil(shares * len(ordered)).astype(int), len(ordered)) - 1
    return np.unique(ordered[ranks])


def certified(score: Array, is_error: Array, thresholds: Array, risk: float, delta: float) -> int:
    """Return the number of the last threshold of the sequence that passes with all before it; -1: the first fails.

    Args:
        score: Uncertainty of pictures that did not place the thresholds; [N].
        is_error: [N], bool.
        thresholds: In the order of testing.
        risk: As for `fit_referral`.
        delta: Likewise.
    """
    for place, threshold in enumerate(thresholds):
        kept = score <= threshold
        if int((kept & is_error).sum()) > errors_allowed(int(kept.sum()), risk, delta):
            return place - 1
    return len(thresholds) - 1


def kept_needed(risk: float, delta: float) -> int:
    """Return how many kept pictures without an error pass the test: the least n with `(1 - risk)^n <= delta`."""
    return math.ceil(math.log(delta) / math.log1p(-risk) - 1e-9)


@functools.lru_cache(maxsize=4096)
def errors_allowed(n: int, risk: float, delta: float) -> int:
    """Return the most errors among n kept pictures that pass the test: `P(Binomial(n, risk) <= k) <= delta`.

    Args:
        n: Kept pictures, >= 0.
        risk: As for `fit_referral`.
        delta: Likewise.

    Returns:
        k, or -1 where not even no error passes.

    Numerics:
        The terms of the sum, each from the one before, in logarithms.
    """
    k = np.arange(1, math.ceil(n * risk) + 1)  # of the mean, more than delta lies below it
    steps = np.log((n - k + 1) / k) + math.log(risk) - math.log1p(-risk)
    terms = n * math.log1p(-risk) + np.concatenate([[0.0], np.cumsum(steps)])
    return int(np.searchsorted(np.cumsum(np.exp(terms)), delta, side="right")) - 1


def _expected_need(score: Array, is_error: Array, thresholds: Array, risk: float, delta: float) -> int | None:
    """Return how many pictures would do, if the kept share and error rate of the best threshold stay as they are."""
    needs = []
    for threshold in thresholds:
        kept = score <= threshold
        n_kept = max(int(kept.sum()), 1)
        rate = (int((kept & is_error).sum()) + 0.5) / (n_kept + 1)
        n = _kept_needed_at(rate, risk, delta)
        if n is not None:
            n_testing = math.ceil(n * len(score) / n_kept)
            needs.append(n_testing + min(_MOST_PLACING, math.ceil(n_testing * _PLACING_SHARE / (1 - _PLACING_SHARE))))
    return min(needs, default=None)


def _kept_needed_at(rate: float, risk: float, delta: float) -> int | None:
    """Return the number of kept pictures, to a twentieth, that pass the test with that error rate; None: none does."""
    n = kept_needed(risk, delta)
    while rate < risk and n < _MOST_NEEDED:
        if math.floor(rate * n) <= errors_allowed(n, risk, delta):
            return n
        n += max(1, n // 20)
    return None
