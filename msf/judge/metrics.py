"""Numbers that compare a prediction with the true labels: accuracy, calibration, selective prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msf.judge.reliability import N_BINS, calibration_error, reliability_diagram
from msf.judge.resampling import Array
from msf.judge.selective import augrc, aurc, coverage_at_risk, e_aurc, risk_at_coverage, risk_coverage_curve
from msf.judge.uncertainty import Prediction, smoothed_votes

# A probability may be exactly zero for the true class; without a floor one such picture makes the mean infinite.
NLL_PROBABILITY_FLOOR = 1e-6
MAX_CURVE_POINTS = 200
COVERAGES = (0.95, 0.9, 0.8, 0.7, 0.5)
RISKS = (0.01, 0.02, 0.05, 0.1)
"""Where accuracy among the kept pictures, and the share that can be kept, are given for every score."""
_SUM_SLACK = 1e-3
PUBLISHED_SCORE = "nearest_distance"
HEADLINES = (
    "n_images", "accuracy", "balanced_accuracy", "auc_macro_ovr", "auc_medmnist", "auc_macro_ovr_of_probability",
    "auc_medmnist_of_probability", "nll", "brier", "ece", "ece_adaptive", "aurc", "e_aurc", "augrc", "decision",
    "probability_source",
)  # fmt: skip
"""The figures of `prediction_metrics` that fit on a screen, in the order in which they are read."""
SUMMARY = ("accuracy", "auc_macro_ovr", "nll", "aurc")
"""Those of the headlines that fit on a line: rightness, ranking, sureness, and what refusing brings."""


def prediction_metrics(prediction: Prediction, labels: Tensor, *, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the numbers that compare a prediction with the true labels.

    Args:
        prediction: Prediction of N pictures.
        labels: True classes; [N], int64, in [0, n_classes).
        class_names: Names used in warnings; default: the numbers of the classes.

    Returns:
        Plain numbers, lists and strings, JSON-ready; a number that the labels leave undefined is None.

        - `n_images`, `accuracy`, `decision`, `probability_source`; `balanced_accuracy`: mean recall of the classes
          that occur.
        - `auc_macro_ovr` (published): area under the ROC curve of `-class_distance`, one class against the rest, mean
          over classes. `auc_medmnist`: the same scores by the rule of MedMNIST: for two classes the last score column
          only, else the mean over classes. Both say how distances rank pictures, and nothing about `probability`.
        - `auc_macro_ovr_of_probability`, `auc_medmnist_of_probability`: the same two rules for `probability`.
        - `nll`: mean of `-ln max(p, 1e-6)` of the true class; votes are smoothed before (`smoothed_votes`), and
          `nll_unsmoothed` is that of `probability` as it is. `brier`: mean of the summed squared error of
          `probability`, in [0, 2]. `ece`: expected calibration error of the largest probability, 15 bins of equal
          width, the last one closed; `ece_adaptive`: the same with bins of as equal numbers as ties allow. All of them
          read `probability`, as the two areas above do, so they judge what `probability_source` names.
        - `reliability`: `n_bins`, and the bins that hold predictions, `equal_width` and `adaptive`; see
          `msf.judge.reliability.reliability_diagram`.
        - `aurc`, `e_aurc`, `augrc`, `selective: {coverage, risk}` of the published score, and the same for every score
          under `scores`, with `error_auroc` (area under the ROC curve of the score as a detector of errors),
          `accuracy_at_<coverage>` (among that share of the pictures, the surest) and `coverage_at_<risk>` (the largest
          share whose error rate is at most that). All are expectations over the order of equal scores. Curves hold at
          most 200 evenly spaced coverages; the areas are taken over all of them.
        - `warnings`: sentences about what could not be measured, and about figures that do not mean what their names
          say: those of `probability` where it is votes that are no probabilities.

    Raises:
        TypeError: Labels that are not int64.
        ValueError: Labels of another shape than [N] or outside the classes; no pictures; a wrong number of names;
            distances that are not finite or probabilities that do not sum to one (the first such picture is named).
    """
    n_classes = prediction.probability.shape[1]
    _check_labels(labels, len(prediction), n_classes)
    _require_sound(prediction)
    if len(class_names) not in (0, n_classes):
        raise ValueError(f"class_names must be empty or one per class ({n_classes}); got {len(class_names)}")
    labels = labels.cpu()
    probability = prediction.probability.double().cpu()
    is_error = prediction.label.cpu() != labels
    class_counts = labels.bincount(minlength=n_classes)
    is_present = class_counts > 0
    recall = labels[~is_error].bincount(minlength=n_classes)[is_present].double() / class_counts[is_present]
    macro_auc, medmnist_auc = _aucs(-prediction.class_distance.cpu(), labels)
    probability_macro_auc, probability_medmnist_auc = _aucs(probability, labels)
    scores = {name: _selective_numbers(score.double().cpu(), is_error) for name, score in prediction.scores().items()}
    published = scores[PUBLISHED_SCORE]
    confidence, is_right = confidences(prediction, labels)
    return {
        "n_images": len(labels),
        "accuracy": 1 - float(is_error.double().mean()),
        "balanced_accuracy": float(recall.mean()),
        "auc_macro_ovr": macro_auc,
        "auc_medmnist": medmnist_auc,
        "auc_macro_ovr_of_probability": probability_macro_auc,
        "auc_medmnist_of_probability": probability_medmnist_auc,
        "nll": float(nll_terms(prediction, labels).mean()),
        "nll_unsmoothed": float(nll_terms(prediction, labels, is_smoothed=False).mean()),
        "brier": float(brier_terms(prediction, labels).mean()),
        "ece": calibration_error(confidence, is_right),
        "ece_adaptive": calibration_error(confidence, is_right, "adaptive"),
        "reliability": {
            "n_bins": N_BINS,
            "equal_width": reliability_diagram(confidence, is_right),
            "adaptive": reliability_diagram(confidence, is_right, "adaptive"),
        },
        "aurc": published["aurc"],
        "e_aurc": published["e_aurc"],
        "augrc": published["augrc"],
        "selective": published["selective"],
        "scores": scores,
        "decision": prediction.decision,
        "probability_source": prediction.probability_source,
        "warnings": [
            f"class {class_names[index] if class_names else index} does not occur among the labels: "
            "it is left out of balanced accuracy and AUC"
            for index in range(n_classes)
            if not is_present[index]
        ]
        + _vote_warnings(prediction),
    }


def _selective_numbers(score: Tensor, is_error: Tensor) -> dict[str, Any]:
    curve = risk_coverage_curve(score, is_error)
    n = len(score)
    points = torch.linspace(0, n - 1, min(n, MAX_CURVE_POINTS)).round().long()
    return {
        "aurc": aurc(score, is_error),
        "e_aurc": e_aurc(score, is_error),
        "augrc": augrc(score, is_error),
        "error_auroc": _auroc(score, is_error),
        **{f"accuracy_at_{coverage:g}": 1 - risk_at_coverage(score, is_error, coverage) for coverage in COVERAGES},
        **{f"coverage_at_{risk:g}": coverage_at_risk(score, is_error, risk) for risk in RISKS},
        "selective": {"coverage": curve.coverage[points].tolist(), "risk": curve.selective_risk[points].tolist()},
    }


def _auroc(score: Tensor, is_positive: Tensor) -> float | None:
    """Return the area under the ROC curve, or None where one of the two groups is empty."""
    from sklearn.metrics import roc_auc_score

    if is_positive.all() or not is_positive.any():
        return None
    return float(roc_auc_score(is_positive.numpy(), score.double().numpy()))


def _aucs(score: Tensor, labels: Tensor) -> tuple[float | None, float | None]:
    """Return the mean over classes of each against the rest, and the same by the rule of MedMNIST."""
    by_class = [_auroc(score[:, index], labels == index) for index in range(score.shape[1])]
    known = [value for value in by_class if value is not None]
    macro = sum(known) / len(known) if known else None
    return macro, by_class[-1] if len(by_class) == 2 else macro


def _vote_warnings(prediction: Prediction) -> list[str]:
    if isinstance(prediction.n_samples, Tensor) and prediction.probability_source == "mean_code":
        return ["draws ended by a stopping rule, which looks at them: means over them are slightly too sure"]
    if prediction.probability_source == "mean_code":
        return []
    if prediction.nfe == 1:
        return [
            "probabilities are votes, and votes after one evaluation are no probabilities: every draw estimates the "
            "same mean, so draws agree where the truth is open; nll, brier, ece, the AUCs of probability and the "
            "entropies judge these votes (a code such as simplex, or several steps of a conditional flow, gives "
            "probabilities)"
        ]
    if prediction.probability_source == "stopped_votes":
        return [
            "probabilities are votes of draws that ended when the leading class was settled, which makes its share too "
            "large (0.7 becomes 0.755): nll, brier, ece and the entropies are those of over-confident votes"
        ]
    if torch.as_tensor(prediction.n_samples).max() == 1:
        return ["probabilities are votes of a single draw, 0 or 1: nll, brier, ece and the entropies say nothing more"]
    return []


def nll_terms(prediction: Prediction, labels: Tensor, *, is_smoothed: bool = True) -> Tensor:
    """Return `-ln max(p, 1e-6)` of the true class of every picture, float64 [N] on the CPU; votes are smoothed."""
    probability = prediction.probability.double().cpu()
    if is_smoothed and prediction.probability_source != "mean_code":
        n_samples = prediction.n_samples
        probability = smoothed_votes(probability, n_samples.cpu() if isinstance(n_samples, Tensor) else n_samples)
    true_class = probability.gather(1, labels.cpu()[:, None])[:, 0]
    return -true_class.clamp_min(NLL_PROBABILITY_FLOOR).log()


def brier_terms(prediction: Prediction, labels: Tensor) -> Tensor:
    """Return the summed squared error of the probabilities of every picture, float64 [N] on the CPU."""
    probability = prediction.probability.double().cpu()
    target = torch.nn.functional.one_hot(labels.cpu(), probability.shape[1])
    return (probability - target).square().sum(1)


def confidences(prediction: Prediction, labels: Tensor) -> tuple[Array, Array]:
    """Return the largest probability of every picture, [N] in [0, 1], and whether its class is the true one, bool."""
    confidence, guess = prediction.probability.double().cpu().clamp(0, 1).max(1)
    return confidence.numpy(), (guess == labels.cpu()).numpy()


def is_sound(prediction: Prediction) -> Tensor:
    """Return which pictures have finite distances, and probabilities that are some: bool [N]."""
    is_distribution = (prediction.probability.sum(1) - 1).abs() <= _SUM_SLACK
    return prediction.class_distance.isfinite().all(1) & is_distribution


def _require_sound(prediction: Prediction) -> None:
    is_broken = ~is_sound(prediction)
    if is_broken.any():
        raise ValueError(
            "distances must be finite and probabilities must sum to one; this fails for "
            f"{int(is_broken.sum())} of {len(prediction)} pictures, the first of which is number "
            f"{int(is_broken.nonzero()[0])}"
        )


def _check_labels(labels: Tensor, n_images: int, n_classes: int) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64; got {labels.dtype}")
    if labels.shape != (n_images,) or n_images == 0:
        raise ValueError(f"labels must be [N] with N = {n_images} >= 1, one per picture; got {list(labels.shape)}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= n_classes:
        raise ValueError(f"labels must be in [0, {n_classes}); got values in [{lowest}, {highest}]")
