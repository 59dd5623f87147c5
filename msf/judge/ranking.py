"""Figures of selective prediction as functions of counts per picture, for intervals over resamples.

A resample may hold a picture several times. Copies have equal scores, so they are ties like others, and every sum over
the pictures of a tie has a closed form: with K pictures and E errors before a tie of n pictures and e errors,

    sum_{j=1..n} (E + j e / n) / (K + j) = e + (E - K e / n) (H(K + n) - H(K)),   H(m) = 1 + 1/2 + ... + 1/m.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from msf.judge.resampling import Array, Figure, Ties

_SLACK = 1e-9


class RankedErrors:
    """The ranking of one score, with the errors among the pictures.

    Args:
        score: Uncertainty; [N], no NaN.
        is_error: [N], bool.
    """

    def __init__(self, score: Array, is_error: Array) -> None:
        """Sort once for all figures and resamples."""
        self._ties, self._is_error = Ties(score), is_error
        self._harmonic: Array = np.zeros(1)
        self._last: tuple[Array, tuple[Array, Array, Array, Array]] | None = None

    def figures(self, coverages: tuple[float, ...], risks: tuple[float, ...]) -> dict[str, Callable[[Array], Array]]:
        """Return figures by name: `aurc`, `e_aurc`, `augrc`, `accuracy_at_<coverage>` and `coverage_at_<risk>`.

        They are those of `msf.judge.selective`, where a picture is counted as often as a resample holds it.

        Args:
            coverages: Kept shares, in (0, 1].
            risks: Accepted error rates, in [0, 1].
        """
        found: dict[str, Figure] = {"aurc": self.aurc, "e_aurc": self.e_aurc, "augrc": self.augrc}
        for coverage in coverages:
            found[f"accuracy_at_{coverage:g}"] = self._accuracy_at(coverage)
        for risk in risks:
            found[f"coverage_at_{risk:g}"] = self._coverage_at(risk)
        return found

    def aurc(self, counts: Array) -> Array:
        """Return the area under the risk-coverage curve of each resample [R, N]; [R]."""
        size, errors, kept, before = self._steps(counts)
        rate = errors / np.maximum(size, 1)
        harmonic = self._harmonics(kept[:, -1].max() if kept.size else 0)
        gained = harmonic[kept.astype(np.int64)] - harmonic[(kept - size).astype(np.int64)]
        total = errors + (before - rate * (kept - size)) * gained
        areas: Array = total.sum(1) / kept[:, -1]
        return areas

    def e_aurc(self, counts: Array) -> Array:
        """Return the excess of each resample over the best ranking of its errors; [R]."""
        n = counts.sum(1).astype(np.int64)
        m = (counts @ self._is_error).round().astype(np.int64)
        harmonic = self._harmonics(n.max())
        best = (m - (n - m) * (harmonic[n] - harmonic[n - m])) / n
        excess: Array = self.aurc(counts) - best
        return excess

    def augrc(self, counts: Array) -> Array:
        """Return the area under the generalised risk-coverage curve of each resample; [R]."""
        size, errors, kept, before = self._steps(counts)
        areas: Array = (size * (before + errors / 2)).sum(1) / kept[:, -1] ** 2
        return areas

    def _accuracy_at(self, coverage: float) -> Figure:
        def figure(counts: Array) -> Array:
            size, errors, kept, before = self._steps(counts)
            wanted = np.maximum(1, np.ceil(coverage * kept[:, -1] - _SLACK))
            tie = (kept < wanted[:, None]).sum(1)[:, None]
            size, errors, kept, before = (
                np.take_along_axis(each, tie, 1)[:, 0] for each in (size, errors, kept, before)
            )
            accuracy: Array = 1 - (before + (wanted - (kept - size)) * errors / size) / wanted
            return accuracy

        return figure

    def _coverage_at(self, risk: float) -> Figure:
        def figure(counts: Array) -> Array:
            size, errors, kept, before = self._steps(counts)
            start, rate = kept - size, errors / np.maximum(size, 1)
            # In a tie the errors exceed the risk by before + j rate - risk (start + j), linear in j.
            fits_whole = before + errors - risk * kept <= _SLACK
            with np.errstate(divide="ignore", invalid="ignore"):
                most = np.floor((risk * start - before) / (rate - risk) + _SLACK)
            part = np.where((rate > risk) & (most >= 1), np.minimum(most, size), 0)
            inside = np.where(fits_whole, size, part)
            coverage: Array = np.where(inside > 0, start + inside, 0).max(1) / kept[:, -1]
            return coverage

        return figure

    def _steps(self, counts: Array) -> tuple[Array, Array, Array, Array]:
        """Return of each tie its pictures, its errors, the pictures up to its end, and the errors before it."""
        if self._last is None or self._last[0] is not counts:  # one after another, all figures take the same counts
            size, errors = self._ties.sums(counts), self._ties.sums(counts, self._is_error)
            self._last = counts, (size, errors, np.cumsum(size, axis=1), np.cumsum(errors, axis=1) - errors)
        return self._last[1]

    def _harmonics(self, most: float) -> Array:
        """Return H(0) ... H(most) at least."""
        if len(self._harmonic) <= most:
            self._harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(most) + 1))])
        return self._harmonic
