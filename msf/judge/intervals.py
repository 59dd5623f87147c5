"""Intervals of the figures of a prediction, from resampled pictures or groups of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from msf.judge.metrics import COVERAGES, RISKS, brier_terms, confidences, nll_terms
from msf.judge.ranking import RankedErrors
from msf.judge.reliability import calibration_error_figure
from msf.judge.resampling import Array, Figure, Interval, Resamples, area, mean_of, share
from msf.judge.uncertainty import Prediction


def metric_intervals(prediction: Prediction, labels: Tensor, resamples: Resamples) -> dict[str, Any]:
    """Return the figures of `msf.judge.metrics.prediction_metrics` with the ends of their intervals.

    Args:
        prediction: Of N pictures, with finite distances and probabilities.
        labels: True classes; [N], int64.
        resamples: Of the N pictures.

    Returns:
        JSON-ready. `overall`: by the names of `prediction_metrics`. `score_intervals`: of every uncertainty score, by
        the names of its `scores`. Each has a `value`, and `low` and `high`, the ends of the percentile interval; what
        the labels leave undefined is None. `intervals`: how they were made.

    Numerics:
        A resample is a count per picture; all figures see the same ones. Adaptive bins are made anew in each.
    """
    true, label = labels.cpu().numpy(), prediction.label.cpu().numpy()
    is_error = label != true
    confidence, is_right = confidences(prediction, labels)
    figures: dict[tuple[str, str], Figure] = {
        ("overall", name): figure
        for name, figure in {
            "accuracy": share(~is_error),
            "balanced_accuracy": mean_of(
                [share(label == k, true == k) for k in range(prediction.probability.shape[1]) if (true == k).any()]
            ),
            **_areas("", (-prediction.class_distance).double().cpu().numpy(), true),
            **_areas("_of_probability", prediction.probability.double().cpu().numpy(), true),
            "nll": share(nll_terms(prediction, labels).numpy()),
            "brier": share(brier_terms(prediction, labels).numpy()),
            "ece": calibration_error_figure(confidence, is_right, "equal_width"),
            "ece_adaptive": calibration_error_figure(confidence, is_right, "adaptive"),
        }.items()
    }
    scores = {name: score.double().cpu().numpy() for name, score in prediction.scores().items()}
    for name, score in scores.items():
        of_score = RankedErrors(score, is_error).figures(COVERAGES, RISKS)
        figures |= {(name, figure): of_score[figure] for figure in of_score}
        figures[name, "error_auroc"] = area(score, is_error)
    found: dict[str, dict[str, Interval]] = {"overall": {}, **{name: {} for name in scores}}
    for (name, figure), values in resamples.intervals(figures).items():
        found[name][figure] = values
    return {"overall": found.pop("overall"), "score_intervals": found, "intervals": resamples.described()}


def _areas(suffix: str, values: Array, true: Array) -> dict[str, Figure]:
    """Return the mean over classes of each against the rest, and the same by the rule of MedMNIST."""
    by_class = [area(values[:, k], true == k) for k in range(values.shape[1])]
    macro = mean_of(by_class)
    return {f"auc_macro_ovr{suffix}": macro, f"auc_medmnist{suffix}": by_class[-1] if len(by_class) == 2 else macro}
