"""What a page is made of: a split that was classified, and generated pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from msf.data import ImageDataset
from msf.judge.decisions import recommended_score
from msf.judge.intervals import metric_intervals
from msf.judge.per_class import per_class_metrics
from msf.judge.resampling import LEVEL, Array, Resamples
from msf.judge.risk_bands import RiskBand, risk_band
from msf.judge.uncertainty import Prediction, check_score

N_RESAMPLES = 300


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """A classified split, with all that its page shows.

    Args:
        dataset: The data.
        split: Which of its splits was classified.
        prediction: Of the split's pictures.
        metrics: What `msf.evaluate.evaluate` returned on them.
        made_with: What `msf.provenance.provenance` returned.
        is_foreign: Whether these are other data than those that the network was trained with.
        source: Where the pictures come from, and what else a reader should know: name to value.
        decisions: What `msf.judge.decisions.decision_outcomes` returned, where the network is calibrated; else empty.
        generated: Class to pictures that the network made of it, float [n, C, H, W] in [0, 1]; empty where none are
            shown.
        ranked_by: Uncertainty score that ranks the pictures shown; None becomes the recommended one.
        groups: What pictures share, such as the patient; whole numbers [N]. None: nothing is known of it.
        seed: Of the resamples.

    Raises:
        ValueError: There is no such score.
    """

    dataset: ImageDataset
    split: str
    prediction: Prediction
    metrics: Mapping[str, Any]
    made_with: Mapping[str, Any]
    is_foreign: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    decisions: Mapping[str, Any] = field(default_factory=dict)
    generated: Mapping[str, Tensor] = field(default_factory=dict)
    ranked_by: str | None = None
    groups: Array | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the score, or choose it."""
        if self.ranked_by is None:
            object.__setattr__(self, "ranked_by", recommended_score(self.prediction))
        check_score(self.score)

    @property
    def score(self) -> str:
        """Name of the score that ranks the pictures shown."""
        return str(self.ranked_by)

    @property
    def labels(self) -> Tensor:
        """True classes; [N]."""
        return self.dataset.split(self.split).labels

    @property
    def is_right(self) -> Tensor:
        """Whether each prediction is right; bool [N], on the CPU."""
        return self.prediction.label.cpu() == self.labels

    @property
    def error_rate(self) -> float:
        """Share of the predictions that are wrong."""
        return 1 - float(self.metrics["accuracy"])

    @functools.cached_property
    def order(self) -> list[int]:
        """Pictures from the surest to the least sure, by `score`."""
        return self.prediction.scores()[self.score].cpu().sort(stable=True).indices.tolist()

    @functools.cached_property
    def resamples(self) -> Resamples:
        """What all bands and intervals of the page are made of."""
        return Resamples(len(self.labels), N_RESAMPLES, self.seed, self.groups)

    @functools.cached_property
    def bands(self) -> dict[str, RiskBand]:
        """The risk-coverage curve of every score that orders the pictures at all."""
        is_error = (~self.is_right).numpy()
        scores = {name: score.double().cpu() for name, score in self.prediction.scores().items()}
        return {
            name: risk_band(score.numpy(), is_error, self.resamples)
            for name, score in scores.items()
            if (score != score[0]).any()
        }

    @functools.cached_property
    def bins(self) -> list[dict[str, Any]]:
        """Predictions by their largest probability: `metrics["reliability"]`, with ends of Wilson intervals.

        Source:
            Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.
        """
        from scipy.stats import binomtest

        bins = []
        for each in self.metrics["reliability"]["equal_width"]:
            n_right = round(each["n"] * each["accuracy"])
            ends = binomtest(n_right, each["n"]).proportion_ci(LEVEL, method="wilson")
            bins.append({**each, "accuracy_low": float(ends.low), "accuracy_high": float(ends.high)})
        return bins

    @functools.cached_property
    def of_classes(self) -> dict[str, Any]:
        """What `msf.judge.per_class.per_class_metrics` returns."""
        return per_class_metrics(self.prediction, self.labels, self.dataset.class_names, self.resamples)

    @functools.cached_property
    def intervals(self) -> dict[str, Any]:
        """What `msf.judge.intervals.metric_intervals` returns."""
        return metric_intervals(self.prediction, self.labels, self.resamples)

    @property
    def most_frequent(self) -> tuple[str, float]:
        """The class that most pictures have, and its share: what a fixed answer would be worth."""
        counts = self.labels.bincount(minlength=self.dataset.n_classes)
        return self.dataset.class_names[int(counts.argmax())], float(counts.max() / len(self.labels))

    @property
    def certain_errors(self) -> list[int]:
        """Wrong predictions, the surest first."""
        return [number for number in self.order if not self.is_right[number]]

    @property
    def uncertain(self) -> list[int]:
        """Pictures, the least sure first."""
        return self.order[::-1]
