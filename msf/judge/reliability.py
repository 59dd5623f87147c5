"""Whether probabilities mean what they say: bins of the largest probability against how often it was right."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from msf.judge.resampling import Array, Figure, Ties

N_BINS = 15
BinRule = Literal["equal_width", "adaptive"]


def bin_numbers(confidence: Array, rule: BinRule, n_bins: int = N_BINS) -> Array:
    """Return the bin of each prediction.

    Args:
        confidence: Largest probability of each prediction; [N], in [0, 1] but for rounding.
        rule: `equal_width`: bin b is [b / n_bins, (b + 1) / n_bins), the last one closed, so that a confidence of 1,
            which votes often have, is no bin of its own. `adaptive`: as many predictions per bin as equal confidences
            allow, which stay together: bin `floor(n_bins r / N)` with the middle r of their ranks.
        n_bins: How many there are, >= 1; some may be empty.

    Returns:
        int64 [N], in [0, n_bins).

    Source:
        Naeini, Cooper and Hauskrecht, AAAI 2015 (equal width); Nguyen and O'Connor, EMNLP 2015 (adaptive).
    """
    if rule == "equal_width":
        edges = np.arange(1, n_bins) / n_bins
        return np.searchsorted(edges, confidence, side="right").astype(np.int64)
    _, inverse, size = np.unique(confidence, return_inverse=True, return_counts=True)
    middle = np.cumsum(size) - size / 2
    numbers: Array = np.floor(n_bins * middle / len(confidence)).astype(np.int64)[inverse]
    return numbers


def calibration_error(confidence: Array, is_right: Array, rule: BinRule = "equal_width", n_bins: int = N_BINS) -> float:
    """Return the expected calibration error: `sum_b (n_b / N) |accuracy_b - confidence_b|` over the bins.

    Args:
        confidence: Largest probability of each prediction; [N], N >= 1.
        is_right: Whether the class with that probability is the true one; [N], bool.
        rule: How predictions are put into bins; see `bin_numbers`.
        n_bins: How many bins.

    Returns:
        In [0, 1].
    """
    gap = np.bincount(bin_numbers(confidence, rule, n_bins), is_right - confidence, n_bins)
    return float(np.abs(gap).sum() / len(confidence))


def reliability_diagram(
    confidence: Array, is_right: Array, rule: BinRule = "equal_width", n_bins: int = N_BINS
) -> list[dict[str, Any]]:
    """Return the bins that hold predictions, in ascending order.

    Args:
        confidence: As for `calibration_error`.
        is_right: Likewise.
        rule: Likewise.
        n_bins: Likewise.

    Returns:
        JSON-ready: of each bin `low` and `high` (its bounds, or for adaptive ones the smallest and largest confidence
        in it), `n`, mean `confidence` and `accuracy`.
    """
    numbers = bin_numbers(confidence, rule, n_bins)
    bins = []
    for number in np.unique(numbers).tolist():
        inside = numbers == number
        own = confidence[inside]
        low, high = (number / n_bins, (number + 1) / n_bins) if rule == "equal_width" else (own.min(), own.max())
        bins.append(
            {
                "low": float(low),
                "high": float(high),
                "n": int(inside.sum()),
                "confidence": float(own.mean()),
                "accuracy": float(is_right[inside].mean()),
            }
        )
    return bins


def calibration_error_figure(confidence: Array, is_right: Array, rule: BinRule, n_bins: int = N_BINS) -> Figure:
    """Return `calibration_error` as a function of counts per picture; adaptive bins are those of each resample."""
    gap = is_right - confidence
    if rule == "equal_width":
        by_bin = np.where(bin_numbers(confidence, rule, n_bins)[:, None] == np.arange(n_bins), gap[:, None], 0.0)
        return lambda counts: np.abs(counts @ by_bin).sum(1) / counts.sum(1)
    ties = Ties(confidence)

    def figure(counts: Array) -> Array:
        sizes, gaps, total = ties.sums(counts), ties.sums(counts, gap), counts.sum(1)
        middle = np.cumsum(sizes, axis=1) - sizes / 2
        # The middle of a tie without pictures may be the very end.
        numbers = np.minimum(np.floor(n_bins * middle / total[:, None]), n_bins - 1)
        error = np.zeros(len(counts))
        for number in range(n_bins):
            error += np.abs(np.where(numbers == number, gaps, 0).sum(1))
        errors: Array = error / total
        return errors

    return figure
