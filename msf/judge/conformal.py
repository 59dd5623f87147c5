"""Conformal prediction sets: the classes that cannot be ruled out, with a stated coverage.

A set holds the true class of a new picture with probability `level` at least, over calibration pictures and new one
drawn alike and independently, whatever the network is worth: a poor one gives large sets. It is a statement on average,
not about any single picture or class; `class_conditional` makes it for every class by itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from msf.config import SetMethod
from msf.judge.uncertainty import Prediction, smoothed_votes

RAPS_PENALTY = 0.1
RAPS_FREE = 1
_SLACK = 1e-9


@dataclass(frozen=True, kw_only=True)
class PredictionSets:
    """A rule that gives every picture a set of classes.

    Args:
        method: How unlikely a class looks, s, and so which are in the set; see `nonconformity`.
        level: Share of the pictures whose set holds their class, in (0, 1).
        quantile: A class is in the set where its s is at most this; one number, or one per class for
            `class_conditional`. None: it always is, since there were too few pictures to rule it out.
        n_images: Calibration pictures.
    """

    method: SetMethod
    level: float
    quantile: tuple[float | None, ...]
    n_images: int

    @property
    def says_nothing(self) -> bool:
        """Whether every set holds every class, for lack of pictures."""
        return all(value is None for value in self.quantile)

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return which classes are in the sets; bool [N, n_classes], on the CPU. The most likely class always is."""
        scores = nonconformity(prediction, self.method)
        most = torch.tensor([math.inf if value is None else value for value in self.quantile], dtype=torch.float64)
        return (scores <= most) | (scores == scores.amin(1, keepdim=True))

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PredictionSets:
        """Build from plain values."""
        return cls(**{**values, "quantile": tuple(values["quantile"])})


def nonconformity(prediction: Prediction, method: SetMethod) -> Tensor:
    """Return how unlikely each class looks.

    Args:
        prediction: Of N pictures; votes are smoothed.
        method: `split`, `class_conditional`: `1 - p_k`. `adaptive`: the probability of all likelier classes, so that
            classes enter from the likeliest on until enough probability is in front of the next. `raps`: the same,
            and 0.1 for every likelier class beyond the first, which keeps sets small. `distance`: the distance to the
            class minus that to the nearest one, which needs no probabilities.

    Returns:
        float64 [N, n_classes], on the CPU; higher = less likely.

    Raises:
        ValueError: An unknown method.

    Source:
        Sadinle, Lei and Wasserman, JASA 2019 (split); Vovk, ACML 2012 (class-conditional); Romano, Sesia and Candes,
        NeurIPS 2020 (adaptive, here without random numbers, so that equal pictures have equal sets); Angelopoulos et
        al., ICLR 2021 (raps).
    """
    if method not in get_args(SetMethod):
        raise ValueError(f"sets-method must be one of {', '.join(get_args(SetMethod))}; got {method!r}")
    if method == "distance":
        distance = prediction.class_distance.double().cpu()
        return distance - distance.amin(1, keepdim=True)
    probability = prediction.probability.double().cpu()
    if prediction.probability_source != "mean_code":
        n_samples = prediction.n_samples
        probability = smoothed_votes(probability, n_samples.cpu() if isinstance(n_samples, Tensor) else n_samples)
    if method in ("split", "class_conditional"):
        return 1 - probability
    is_likelier = probability[:, None, :] > probability[:, :, None]  # [N, class, other]
    in_front = torch.where(is_likelier, probability[:, None, :], 0).sum(2)
    if method == "adaptive":
        return in_front
    return in_front + RAPS_PENALTY * (is_likelier.sum(2) - RAPS_FREE).clamp_min(0)


def fit_sets(prediction: Prediction, labels: Tensor, level: float, method: SetMethod) -> PredictionSets:
    """Return the rule that calibration pictures give.

    The quantile is the `ceil((n + 1) level)`-th smallest score of the true classes, n of them.

    Args:
        prediction: Of N >= 1 pictures that chose nothing of the network.
        labels: True classes; [N], int64.
        level: Wanted coverage, in (0, 1).
        method: See `nonconformity`.

    Raises:
        ValueError: A level out of range, or an unknown method.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1); got {level!r}")
    labels = labels.cpu()
    own = nonconformity(prediction, method).gather(1, labels[:, None])[:, 0]
    parts = [own]
    if method == "class_conditional":
        parts = [own[labels == k] for k in range(prediction.probability.shape[1])]
    quantiles = tuple(_quantile(part, level) for part in parts)
    return PredictionSets(method=method, level=level, quantile=quantiles, n_images=len(labels))


def pictures_needed(level: float) -> int:
    """Return how many calibration pictures (of every class, for `class_conditional`) rule out any class at all."""
    return math.ceil(level / (1 - level) - _SLACK)


def _quantile(scores: Tensor, level: float) -> float | None:
    rank = math.ceil((len(scores) + 1) * level - _SLACK)
    return None if rank > len(scores) else float(scores.sort().values[max(rank, 1) - 1])
