"""Intervals from resampled pictures: every figure of one set of resamples, each a function of counts per picture."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Figure = Callable[[Array], Array]
"""From counts [R, N], how often each picture is in each resample, to the value in each; [R], NaN where undefined."""
Interval = dict[str, float | None]
Key = TypeVar("Key", bound=Hashable)
LEVEL = 0.95
N_RESAMPLES = 1000
_BLOCK_VALUES = 2**22


class Resamples:
    """How often each picture is in each resample; the first is the sample itself.

    Args:
        n: Pictures.
        n_resamples: Resamples of them, with replacement.
        seed: Of the resamples.
        groups: What pictures share, such as the patient; [N], whole numbers. Whole groups are then resampled, as many
            as there are. None: each picture is one of its own.
    """

    def __init__(self, n: int, n_resamples: int, seed: int, groups: Array | None = None) -> None:
        """Draw nothing yet."""
        self._n_resamples, self._seed = n_resamples, seed
        units = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
        self._units: Array = units
        self._n_units = int(units.max()) + 1

    @property
    def unit(self) -> str:
        """What is resampled."""
        return "pictures" if self._n_units == len(self._units) else "groups"

    def blocks(self) -> Iterator[Array]:
        """Yield counts [R, N] in blocks, the same at every call."""
        yield np.ones((1, len(self._units)))
        rng = np.random.default_rng(self._seed)
        share = np.full(self._n_units, 1 / self._n_units)
        left, most = self._n_resamples, max(1, _BLOCK_VALUES // len(self._units))
        while left:
            block = min(left, most)
            yield rng.multinomial(self._n_units, share, size=block)[:, self._units].astype(np.float64)
            left -= block

    def values(self, figures: Mapping[Key, Figure]) -> dict[Key, Array]:
        """Return every figure of every resample, [1 + n_resamples], in one pass."""
        parts: dict[Key, list[Array]] = {name: [] for name in figures}
        for block in self.blocks():
            for name, figure in figures.items():
                parts[name].append(figure(block))
        return {name: np.concatenate(values) for name, values in parts.items()}

    def intervals(self, figures: Mapping[Key, Figure]) -> dict[Key, Interval]:
        """Return the value of every figure with the ends of its interval; see `interval`."""
        return {name: interval(values) for name, values in self.values(figures).items()}

    def described(self) -> dict[str, Any]:
        """Return how intervals are made, JSON-ready."""
        return {
            "method": f"percentile bootstrap over {self.unit}",
            "level": LEVEL,
            "n_resamples": self._n_resamples,
            "seed": self._seed,
        }


def interval(values: Array) -> Interval:
    """Return the first value, and the ends of the interval that the others span; None for what is undefined."""
    value, others = values[0], values[1:][~np.isnan(values[1:])]
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    if not len(others):
        return {"value": float(value), "low": None, "high": None}
    low, high = np.quantile(others, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def share(is_hit: Array, is_counted: Array | None = None) -> Figure:
    """Return the share of hits, or the mean of values, among the counted: all, where none are named."""
    counted = np.ones(len(is_hit)) if is_counted is None else is_counted
    both = np.stack([is_hit * counted, counted], 1).astype(np.float64)

    def figure(counts: Array) -> Array:
        sums = counts @ both
        with np.errstate(invalid="ignore"):
            shares: Array = sums[:, 0] / sums[:, 1]
        return shares

    return figure


def mean_of(figures: list[Figure]) -> Figure:
    """Return the mean of several figures, over those that are defined in a resample."""

    def figure(counts: Array) -> Array:
        values = np.stack([each(counts) for each in figures])
        is_known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            means: Array = np.where(is_known, values, 0).sum(0) / is_known.sum(0)
        return means

    return figure


class Ties:
    """Pictures in ascending order of a score, put together where it is equal.

    Args:
        score: [N], no NaN.
    """

    def __init__(self, score: Array) -> None:
        """Sort once for all resamples."""
        self._order = np.argsort(score, kind="stable")
        ordered = score[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))

    def sums(self, counts: Array, weight: Array | None = None) -> Array:
        """Return the pictures of each tie, or the sum of a weight over them; [R, n_ties]."""
        ordered = counts[:, self._order]
        if weight is not None:
            ordered = ordered * weight[self._order]
        sums: Array = np.add.reduceat(ordered, self._starts, axis=1)
        return sums


def area(score: Array, is_positive: Array) -> Figure:
    """Return the area under the ROC curve; NaN where one of the two groups is empty.

    P(score of a positive > score of a negative) + P(equal) / 2.
    """
    ties = Ties(score)

    def figure(counts: Array) -> Array:
        up, down = ties.sums(counts, is_positive), ties.sums(counts, ~is_positive)
        below = np.cumsum(down, axis=1) - down / 2
        with np.errstate(invalid="ignore"):
            areas: Array = (up * below).sum(1) / (up.sum(1) * down.sum(1))
        return areas

    return figure
