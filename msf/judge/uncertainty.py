"""What a classification says, and how much to trust it: the `Prediction` and its named uncertainty scores.

The scores are different quantities and are never mixed. Which of them means what depends on how the draws were made
(one step or many, joint or conditional flow, which code), so a prediction carries its `probability_source`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from msf.config import Decision, ReadoutName
from msf.plain_values import told_apart

ProbabilitySource = Literal["mean_code", "votes"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Labels, probabilities and uncertainties of N classified pictures; every tensor's first axis is N.

    Statistics are float64.

    Args:
        label: Predicted class, by `decision`; [N], int64.
        probability: Predictive distribution, by `probability_source`; [N, n_classes], rows sum to one.
        class_distance: Distance of the recovered semantic map to each class's code, mean over draws; [N, n_classes].
        distance_std: Standard deviation over draws of that distance, unbiased; [N, n_classes]. NaN after one draw.
        votes: Share of the draws whose own nearest class is that class; [N, n_classes].
        pixel_votes: Share of the pixels whose nearest code is that class, mean over draws; [N, n_classes].
        predictive_entropy: Entropy of `probability`, in nats; [N]. All the uncertainty that the draws show.
        expected_entropy: Mean over draws of the entropy of each draw's own distribution, in nats; [N].
        mutual_information: `predictive_entropy - expected_entropy`, in nats, >= 0; [N]: disagreement between draws.
        nearest_distance: `class_distance` of the predicted class; [N]. The published score.
        margin: Second smallest minus smallest `class_distance`; [N], >= 0; small = uncertain.
        n_samples: Draws made; a number, or [N] int64 where pictures stopped on their own.
        nfe: Evaluations of the network per draw.
        micro_batch: Draws evaluated at once, at most. Where `convolution` is `native`, bits do not depend on it; else
            they are equal between two predictions only if this is.
        probability_source: `mean_code`: mean over draws of the code's own class probabilities, where one evaluation
            estimates p(label | picture). `votes`: the share of draws per class; each draw's own distribution is then
            one-hot, so `expected_entropy` is zero and `mutual_information` equals `predictive_entropy`.
        decision: How `label` was chosen: `distance` (smallest mean distance; the published mean rule), `pixel_votes`
            (largest mean share of pixels; the published mode rule) or `probability` (largest probability).
        readout: What recovered maps were compared with: `latent` or `decoded`; see `MedSymmFlow.classify`.
        precision: Arithmetic of the network: `fp32`, `bf16`, `fp16` or `fp64`.
        convolution: What convolved: names of backends, the most frequent first, as in `native+onednn`.
        sample_distance: Distance to each class per draw, where samples were kept; [N, S, n_classes], NaN for draws
            that a stopped picture did not make.
    """

    label: Tensor
    probability: Tensor
    class_distance: Tensor
    distance_std: Tensor
    votes: Tensor
    pixel_votes: Tensor
    predictive_entropy: Tensor
    expected_entropy: Tensor
    mutual_information: Tensor
    nearest_distance: Tensor
    margin: Tensor
    n_samples: int | Tensor
    nfe: int
    micro_batch: int
    probability_source: ProbabilitySource
    decision: Decision
    readout: ReadoutName = "latent"
    precision: str = "fp32"
    convolution: str = "torch"
    sample_distance: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.label)

    def scores(self) -> dict[str, Tensor]:
        """Return every uncertainty score by name, oriented so that higher means more uncertain; each [N]."""
        return {name: score(self) for name, score in UNCERTAINTY_SCORES.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain numbers, strings and nested lists (JSON-ready; NaN becomes None)."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in dataclasses.fields(self)}

    def to_records(self, class_names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Return one record per picture, JSON-ready; NaN becomes None.

        Fields with a class axis become `{class: value}`, with the class's number behind a name that two classes have;
        the draws are left out. A picture without a label has no `label_name`.

        Args:
            class_names: Names of the classes; default: their numbers.

        Raises:
            ValueError: The number of names is neither zero nor the number of classes.
        """
        n_classes = self.probability.shape[1]
        if len(class_names) not in (0, n_classes):
            raise ValueError(f"class_names must be empty or one per class ({n_classes}); got {len(class_names)}")
        names = class_names or tuple(str(index) for index in range(n_classes))
        columns = {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if entry.name != "sample_distance"
        }
        plain = {name: _plain(value) for name, value in columns.items()}
        classes = told_apart(names)
        records = []
        for position in range(len(self)):
            record: dict[str, Any] = {"index": position}
            for name, value in columns.items():
                if not isinstance(value, Tensor):
                    record[name] = value
                elif value.ndim == 1:
                    record[name] = plain[name][position]
                else:
                    record[name] = dict(zip(classes, plain[name][position], strict=True))
                if name == "label":
                    record["label_name"] = names[record["label"]] if record["label"] >= 0 else None
            records.append(record)
        return records

    def to_rows(self, class_names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Return the records of `to_records` as flat rows, as a table needs them: columns `probability_<class>`.

        Args:
            class_names: As for `to_records`.

        Raises:
            ValueError: Likewise.
        """
        return [flat_row(record) for record in self.to_records(class_names)]


def flat_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of `Prediction.to_records` with one column per field and class."""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            classes = told_apart(list(value), ("source",))  # `probability_source` is a column of its own
            row.update({f"{name}_{c}": v for c, v in zip(classes, value.values(), strict=True)})
        else:
            row[name] = value
    return row


class InvalidPredictionError(ValueError):
    """The network gives values that are NaN or infinite for some pictures; the predictions of the others are kept.

    Args:
        prediction: Of all pictures; those of the invalid ones hold NaN, and their label is -1.
        invalid: Numbers of the invalid pictures, ascending.

    Attributes:
        prediction: As given.
        invalid: As given.
    """

    def __init__(self, prediction: Prediction, invalid: list[int]) -> None:
        """Word the error by the first invalid picture."""
        self.prediction = prediction
        self.invalid = invalid
        super().__init__(
            f"the network must give finite values; got others for picture {invalid[0]} ({len(invalid)} of "
            f"{len(prediction)} pictures): its weights or its dtype do not serve it"
        )


UNCERTAINTY_SCORES: dict[str, Callable[[Prediction], Tensor]] = {
    "nearest_distance": lambda prediction: prediction.nearest_distance,
    "margin": lambda prediction: -prediction.margin,
    "predictive_entropy": lambda prediction: prediction.predictive_entropy,
    "expected_entropy": lambda prediction: prediction.expected_entropy,
    "mutual_information": lambda prediction: prediction.mutual_information,
    "disagreement": lambda prediction: 1 - prediction.votes.amax(1),
}
"""Every uncertainty score by name; higher means more uncertain, so `margin` is taken with a minus sign."""


def entropy(probability: Tensor) -> Tensor:
    """Return the entropy of distributions over the last axis, in nats, with 0 ln 0 = 0.

    Args:
        probability: [..., n_classes], >= 0, summing to one over the last axis.

    Returns:
        [...], in [0, ln n_classes].
    """
    terms: Tensor = torch.special.entr(probability)
    return terms.sum(-1)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What was accumulated over the draws of N pictures.

    Args:
        class_distance: Mean over draws of the distance to each class; [N, n_classes], float.
        distance_std: Standard deviation over draws of that distance; [N, n_classes].
        votes: Share of the draws nearest to each class; [N, n_classes].
        pixel_votes: Mean over draws of the share of pixels nearest to each class; [N, n_classes].
        code_probability: Mean over draws of the code's class probabilities; [N, n_classes]. Only where these are an
            estimate of p(label | picture), which the caller decides.
        code_entropy: Mean over draws of the entropy of the code's class probabilities, in nats; [N].
        sample_distance: Distances per draw; [N, S, n_classes].

    Raises:
        ValueError: Only one of `code_probability` and `code_entropy` is given.
    """

    class_distance: Tensor
    distance_std: Tensor
    votes: Tensor
    pixel_votes: Tensor
    code_probability: Tensor | None = None
    code_entropy: Tensor | None = None
    sample_distance: Tensor | None = None

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if (self.code_probability is None) != (self.code_entropy is None):
            raise ValueError("code_probability and code_entropy must be given together")


def make_prediction(
    draws: Draws,
    *,
    n_samples: int | Tensor,
    nfe: int,
    micro_batch: int,
    decision: Decision = "distance",
    readout: ReadoutName = "latent",
    precision: str = "fp32",
    convolution: str = "torch",
) -> Prediction:
    """Build a prediction from what was accumulated over the draws.

    `probability = code_probability` where given (source `mean_code`), else `votes`; `label = argmin class_distance`,
    or the argmax of `pixel_votes` or `probability`, ties to the lowest class.

    Args:
        draws: The accumulated statistics.
        n_samples: Draws made, for all or per picture ([N]).
        nfe: Evaluations of the network per draw.
        micro_batch: Draws evaluated at once.
        decision: The rule for the label; see `Prediction`.
        readout: What the maps were compared with, passed on.
        precision: Arithmetic of the network, passed on.
        convolution: What convolved, passed on.

    Returns:
        The prediction, on the device of the statistics.

    Raises:
        ValueError: `decision` is unknown.
    """
    check_decision(decision)
    votes, class_distance = draws.votes, draws.class_distance
    if draws.code_probability is not None and draws.code_entropy is not None:
        source: ProbabilitySource = "mean_code"
        probability, expected_entropy = draws.code_probability, draws.code_entropy
    else:
        source = "votes"
        probability, expected_entropy = votes, votes.new_zeros(len(votes))
    predictive_entropy = entropy(probability)
    label = {
        "distance": class_distance.argmin(1),
        "pixel_votes": draws.pixel_votes.argmax(1),
        "probability": probability.argmax(1),
    }[decision]
    nearest, second = class_distance.topk(2, dim=1, largest=False).values.unbind(1)
    return Prediction(
        label=label,
        probability=probability,
        class_distance=class_distance,
        distance_std=draws.distance_std,
        votes=votes,
        pixel_votes=draws.pixel_votes,
        predictive_entropy=predictive_entropy,
        expected_entropy=expected_entropy,
        # The entropy is concave, so this is >= 0 but for rounding.
        mutual_information=(predictive_entropy - expected_entropy).clamp_min(0),
        nearest_distance=class_distance.gather(1, label[:, None]).squeeze(1),
        margin=second - nearest,
        n_samples=n_samples,
        nfe=nfe,
        micro_batch=micro_batch,
        probability_source=source,
        decision=decision,
        readout=readout,
        precision=precision,
        convolution=convolution,
        sample_distance=draws.sample_distance,
    )


def check_decision(decision: str) -> None:
    """Refuse a decision rule that does not exist.

    Raises:
        ValueError: The text lists the known rules.
    """
    known = get_args(Decision)
    if decision not in known:
        raise ValueError(f"decision must be one of {', '.join(known)}; got {decision!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
