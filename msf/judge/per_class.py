"""Figures of single classes, with intervals from resampled pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from msf.judge.uncertainty import Prediction

Array = np.ndarray[Any, np.dtype[Any]]
LEVEL = 0.95
N_RESAMPLES = 1000
_BLOCK_VALUES = 2**22


def per_class_metrics(
    prediction: Prediction,
    labels: Tensor,
    class_names: Sequence[str],
    *,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the confusion matrix, and recall, specificity and areas under the ROC curve of every class.

    Args:
        prediction: Of N pictures, with finite distances and probabilities.
        labels: True classes; [N], int64.
        class_names: One per class.
        n_resamples: Resamples of the pictures, each N of them with replacement.
        seed: Of the resamples.

    Returns:
        JSON-ready. `confusion_matrix`: `classes`, and `counts` with a row per true and a column per predicted class.
        `per_class`: for each class its name, number of pictures, and `recall`, `specificity`, `auc` (of
        `-class_distance`, this class against the rest) and `auc_of_probability`. `overall`: `accuracy` and
        `balanced_accuracy` (mean recall of the classes that occur). Each has a `value`, and `low` and `high`, the ends
        of the percentile interval; what the labels leave undefined is None. `intervals`: how they were made.

    Numerics:
        Values are those of scikit-learn. Resamples are counts per picture: an area is one pass over scores.
        Pictures are resampled, not patients: where a patient has several, intervals are too narrow.
    """
    from sklearn.metrics import confusion_matrix

    n_classes, true, label = len(class_names), labels.cpu().numpy(), prediction.label.cpu().numpy()
    counts = confusion_matrix(true, label, labels=np.arange(n_classes))
    resamples = _Resamples(len(true), n_resamples, seed)
    distance, probability = (-prediction.class_distance).cpu().numpy(), prediction.probability.cpu().numpy()
    per_class = []
    recalls = []
    for number, name in enumerate(class_names):
        is_true, is_said = true == number, label == number
        recall = _share(is_true & is_said, is_true, resamples)
        recalls.append(recall)
        per_class.append(
            {
                "class": name,
                "n": int(is_true.sum()),
                "recall": _interval(recall),
                "specificity": _interval(_share(~is_true & ~is_said, ~is_true, resamples)),
                "auc": _interval(_area(distance[:, number], is_true, resamples)),
                "auc_of_probability": _interval(_area(probability[:, number], is_true, resamples)),
            }
        )
    occurring = np.stack([recall for recall in recalls if not np.isnan(recall[0])])
    return {
        "confusion_matrix": {"classes": list(class_names), "counts": counts.tolist()},
        "per_class": per_class,
        "overall": {
            "accuracy": _interval(_share(true == label, np.ones(len(true), bool), resamples)),
            "balanced_accuracy": _interval(_mean(occurring)),
        },
        "intervals": {
            "method": "percentile bootstrap over pictures",
            "level": LEVEL,
            "n_resamples": n_resamples,
            "seed": seed,
        },
    }


class _Resamples:
    """How often each picture is in each resample; the first is the sample itself."""

    def __init__(self, n: int, n_resamples: int, seed: int) -> None:
        self._n, self._n_resamples, self._seed = n, n_resamples, seed

    def blocks(self) -> Iterator[Array]:
        """Yield counts [R, N] in blocks, the same at every call."""
        yield np.ones((1, self._n))
        rng = np.random.default_rng(self._seed)
        left, most = self._n_resamples, max(1, _BLOCK_VALUES // self._n)
        while left:
            block = min(left, most)
            yield rng.multinomial(self._n, np.full(self._n, 1 / self._n), size=block).astype(np.float64)
            left -= block


def _share(is_hit: Array, is_counted: Array, resamples: _Resamples) -> Array:
    """Return the share of hits among the counted in each resample; NaN where none is counted."""
    both = np.stack([is_hit, is_counted], 1).astype(np.float64)
    sums = np.concatenate([block @ both for block in resamples.blocks()])
    with np.errstate(invalid="ignore"):
        shares: Array = sums[:, 0] / sums[:, 1]
    return shares


def _area(score: Array, is_positive: Array, resamples: _Resamples) -> Array:
    """Return the area under the ROC curve in each resample; NaN where one of the two groups is empty.

    P(score of a positive > score of a negative) + P(equal) / 2, over groups of equal scores in ascending order.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.diff(score[order], prepend=np.nan) != 0)
    positive = is_positive[order]
    areas = []
    for block in resamples.blocks():
        sorted_counts = block[:, order]
        up = np.add.reduceat(sorted_counts * positive, starts, axis=1)
        down = np.add.reduceat(sorted_counts * ~positive, starts, axis=1)
        below = np.cumsum(down, axis=1) - down / 2
        with np.errstate(invalid="ignore"):
            areas.append((up * below).sum(1) / (up.sum(1) * down.sum(1)))
    return np.concatenate(areas)


def _mean(values: Array) -> Array:
    """Return the mean over classes of each resample, over those that occur in it."""
    is_known = ~np.isnan(values)
    sums = np.where(is_known, values, 0).sum(0)
    with np.errstate(invalid="ignore"):
        means: Array = sums / is_known.sum(0)
    return means


def _interval(values: Array) -> dict[str, float | None]:
    """Return the first value, and the ends of the interval that the others span."""
    value, others = values[0], values[1:][~np.isnan(values[1:])]
    if np.isnan(value):
        return {"value": None, "low": None, "high": None}
    if not len(others):
        return {"value": float(value), "low": None, "high": None}
    low, high = np.quantile(others, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}
