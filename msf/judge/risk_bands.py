"""Risk-coverage curves with the band in which they would lie on other pictures of the same kind."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from msf.judge.resampling import LEVEL, Array, Resamples, Ties

N_COVERAGES = 100


class RiskBand(NamedTuple):
    """The error rate among the surest part of the pictures, for parts of every size.

    Args:
        coverage: Kept shares of the pictures, 0.01, 0.02 ... 1; fp64 [100].
        risk: Error rate among them; fp64 [100]. Inside a tie errors are spread evenly, so that the order of the
            pictures does not matter.
        low: Lower ends of the percentile intervals, one per coverage (the band is pointwise); fp64 [100].
        high: Upper ends.
    """

    coverage: Array
    risk: Array
    low: Array
    high: Array

    def at(self, coverage: float) -> tuple[float, float, float]:
        """Return risk, low and high where about this share is kept; in (0, 1]."""
        place = int(np.abs(self.coverage - coverage).argmin())
        return float(self.risk[place]), float(self.low[place]), float(self.high[place])


def risk_band(score: Array, is_error: Array, resamples: Resamples) -> RiskBand:
    """Return the risk-coverage curve of a score with its pointwise percentile band.

    Args:
        score: Uncertainty of each prediction, higher = more uncertain, no NaN; [N].
        is_error: Whether each prediction is wrong; [N], bool.
        resamples: Of the N pictures.

    Numerics:
        A resample is a count per picture: ranked once, its kept pictures and errors are cumulative sums.
    """
    ties = Ties(score)
    coverage = np.arange(1, N_COVERAGES + 1) / N_COVERAGES
    risks = []
    for block in resamples.blocks():
        kept, wrong = ties.sums(block).cumsum(1), ties.sums(block, is_error).cumsum(1)
        for n_kept, n_wrong in zip(_from_origin(kept), _from_origin(wrong), strict=True):
            wanted = coverage * n_kept[-1]
            risks.append(np.interp(wanted, n_kept, n_wrong) / wanted)
    low, high = np.quantile(risks[1:] or risks, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return RiskBand(coverage, risks[0], low, high)


def _from_origin(sums: Array) -> Array:
    return np.pad(sums, ((0, 0), (1, 0)))
