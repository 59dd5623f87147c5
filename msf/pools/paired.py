"""Paired comparison of two classifiers on the same pictures: difference, interval and a sign-flip test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

N_DRAWS = 9999
CONFIDENCE = 0.95
_PART = 500  # draws at once
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Comparison:
    """The difference of two balanced accuracies.

    Args:
        difference: First minus second.
        low: End of the interval.
        high: End of the interval.
        p: Two-sided.
    """

    difference: float
    low: float
    high: float
    p: float


def weights_of(labels: Array) -> Array:
    """Return a weight per picture with which a mean of correct answers is the balanced accuracy; they sum to 1."""
    counts = np.bincount(labels)
    return np.asarray(1 / (np.count_nonzero(counts) * counts[labels]), np.float64)


def balanced_accuracy(correct: Array, labels: Array) -> float:
    """Return the mean over classes of the share of correct answers; `correct` [N] in [0, 1]."""
    return float(weights_of(labels) @ correct)


def interval(values: Array, labels: Array, *, seed: int) -> tuple[float, float]:
    """Return a bootstrap interval of the mean over classes of the mean of values, pictures drawn within each class.

    Args:
        values: One per picture, [N].
        labels: Their classes, [N].
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(N_DRAWS)
    classes = np.unique(labels)
    for label in classes:
        own = values[labels == label]
        for first in range(0, N_DRAWS, _PART):
            rows = generator.integers(len(own), size=(min(_PART, N_DRAWS - first), len(own)))
            means[first : first + _PART] += own[rows].mean(1) / len(classes)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def compare(first: Array, second: Array, labels: Array, *, seed: int) -> Comparison:
    """Compare correct answers of two classifiers on the same pictures.

    Sign-flip test: were both equally good on every picture, each picture's difference could as well have the other
    sign. `p = (1 + number of draws of signs with a difference at least as large) / (1 + number of draws)`.

    Args:
        first: Share of correct answers per picture (over training seeds), [N] in [0, 1].
        second: Likewise.
        labels: True classes, [N].
        seed: Of the draws.

    Returns:
        The comparison of balanced accuracies. What it says holds for these trained classifiers and new pictures; that
        another training could end otherwise is in it only as far as several seeds were averaged.
    """
    each = first - second
    weighted = each * weights_of(labels)
    difference = float(weighted.sum())
    generator = np.random.default_rng(seed)
    moved = weighted[weighted != 0]
    n_as_large = 0
    for begin in range(0, N_DRAWS, _PART):
        signs = generator.choice([-1.0, 1.0], size=(min(_PART, N_DRAWS - begin), len(moved)))
        # A margin for rounding: equal differences count.
        n_as_large += int((np.abs(signs @ moved) >= abs(difference) - 1e-12).sum())
    low, high = interval(each, labels, seed=seed)
    return Comparison(difference, low, high, (1 + n_as_large) / (1 + N_DRAWS))


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number.

    Source:
        Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[number]))
        adjusted[number] = largest
    return adjusted
