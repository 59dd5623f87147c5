"""How well a score tells pictures of another kind from those that the network was made for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from msf.judge.resampling import Array, Resamples, interval
from msf.judge.uncertainty import Prediction

ACCEPTED = 0.95
"""Share of the own pictures that a threshold keeps at least, where the false positive rate is taken."""
_SLACK = 1e-9


def detection_metrics(
    prediction: Prediction, foreign: Prediction, resamples: Resamples, foreign_resamples: Resamples
) -> dict[str, Any]:
    """Return how well every uncertainty score tells foreign pictures from own ones.

    Args:
        prediction: Of own pictures, N of them.
        foreign: Of pictures of another data set, by the same network and settings.
        resamples: Of the own pictures.
        foreign_resamples: Of the foreign ones, as many.

    Returns:
        JSON-ready, by score: `auroc`, the area under the ROC curve with foreign pictures as the higher ones (equal
        scores count one half), and `fpr95`, the share of foreign pictures at or below the lowest score that keeps at
        least 95 % of the own ones. Each has a `value`, and `low` and `high`, the ends of the percentile interval.

    Source:
        Hendrycks and Gimpel, A baseline for detecting misclassified and out-of-distribution examples, ICLR 2017.
    """
    own, others = prediction.scores(), foreign.scores()
    ranked = {name: _Ranked(own[name].double().cpu().numpy(), others[name].double().cpu().numpy()) for name in own}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ranked}
    for counts, foreign_counts in zip(_single(resamples), _single(foreign_resamples), strict=True):
        for name, scores in ranked.items():
            found[name].append(scores.figures(counts, foreign_counts))
    columns = {name: np.array(values).T for name, values in found.items()}
    return {name: {"auroc": interval(auroc), "fpr95": interval(fpr95)} for name, (auroc, fpr95) in columns.items()}


class _Ranked:
    """The distinct scores of two groups of pictures, ascending."""

    def __init__(self, own: Array, foreign: Array) -> None:
        levels, places = np.unique(np.concatenate([own, foreign]), return_inverse=True)
        self._n_levels, self._own, self._foreign = len(levels), places[: len(own)], places[len(own) :]

    def figures(self, counts: Array, foreign_counts: Array) -> tuple[float, float]:
        """Return AUROC and FPR95 of one resample."""
        own = np.bincount(self._own, counts, self._n_levels)
        foreign = np.bincount(self._foreign, foreign_counts, self._n_levels)
        kept, accepted = np.cumsum(own), np.cumsum(foreign)
        auroc = (foreign * (kept - own / 2)).sum() / (kept[-1] * accepted[-1])
        first = np.searchsorted(kept, np.ceil(ACCEPTED * kept[-1] - _SLACK))
        return float(auroc), float(accepted[first] / accepted[-1])


def _single(resamples: Resamples) -> Iterator[Array]:
    return (counts for block in resamples.blocks() for counts in block)
