"""Figures of single classes, with intervals from resampled pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from msf.judge.resampling import Figure, Resamples, area, share
from msf.judge.uncertainty import Prediction


def per_class_metrics(
    prediction: Prediction, labels: Tensor, class_names: Sequence[str], resamples: Resamples
) -> dict[str, Any]:
    """Return the confusion matrix, and recall, specificity and areas under the ROC curve of every class.

    Args:
        prediction: Of N pictures, with finite distances and probabilities.
        labels: True classes; [N], int64.
        class_names: One per class.
        resamples: Of the N pictures.

    Returns:
        JSON-ready. `confusion_matrix`: `classes`, and `counts` with a row per true and a column per predicted class.
        `per_class`: for each class its name, number of pictures, and `recall`, `specificity`, `auc` (of
        `-class_distance`, this class against the rest) and `auc_of_probability`. Each has a `value`, and `low` and
        `high`, the ends of the percentile interval; what the labels leave undefined is None.

    Numerics:
        Values are those of scikit-learn. Resamples are counts per picture: an area is one pass over scores.
    """
    from sklearn.metrics import confusion_matrix

    n_classes, true, label = len(class_names), labels.cpu().numpy(), prediction.label.cpu().numpy()
    counts = confusion_matrix(true, label, labels=np.arange(n_classes))
    distance, probability = (-prediction.class_distance).cpu().numpy(), prediction.probability.cpu().numpy()
    figures: dict[tuple[int, str], Figure] = {}
    for number in range(n_classes):
        is_true, is_said = true == number, label == number
        figures |= {
            (number, "recall"): share(is_said, is_true),
            (number, "specificity"): share(~is_said, ~is_true),
            (number, "auc"): area(distance[:, number], is_true),
            (number, "auc_of_probability"): area(probability[:, number], is_true),
        }
    found = resamples.intervals(figures)
    per_class = [
        {"class": name, "n": int((true == number).sum()), **{kind: found[n, kind] for n, kind in found if n == number}}
        for number, name in enumerate(class_names)
    ]
    return {
        "confusion_matrix": {"classes": list(class_names), "counts": counts.tolist()},
        "per_class": per_class,
    }
