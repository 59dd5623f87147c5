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

ProbabilitySource = Literal["mean_code", "votes", "stopped_votes"]
DecisionMade = Decision | Literal["votes"]
# Entropies are compared with each other: equal ones shall stay equal whatever the order of their terms.
_ENTROPY_DECIMALS = 12


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
        mutual_information: Entropy of the mean over draws of each draw's own distribution, minus `expected_entropy`, in
            nats, >= 0; [N]: disagreement between draws. With `mean_code` that mean is not quite `probability`, which is
            projected on the distributions once, after averaging.
        nearest_distance: `class_distance` of the predicted class; [N]. The published score.
        margin: By how much the predicted class leads the next one in what `decision` compares: distance, share of
            pixels, probability or votes; [N], >= 0; small = uncertain.
        n_samples: Draws made; a number, or [N] int64 where pictures stopped on their own.
        nfe: Evaluations of the network per draw.
        micro_batch: Draws evaluated at once, at most. Where `convolution` is `native`, bits do not depend on it; else
            they are equal between two predictions only if this is.
        probability_source: `mean_code`: class weights of the code, averaged over draws and then projected on the
            distributions, where one evaluation estimates p(label | picture). `votes`: the share of draws per class;
            each draw's own distribution is then one-hot, so `expected_entropy` is zero and `mutual_information` equals
            `predictive_entropy`. `stopped_votes`: the same, drawn until a stopping rule was content, which makes the
            leading class's share larger than its probability: 0.7 becomes 0.755.
        decision: How `label` was chosen: `distance` (smallest mean distance; the published mean rule), `pixel_votes`
            (largest mean share of pixels; the published mode rule), `probability` (largest probability), or `votes`
            (most draws), where votes were counted by a stopping rule: what it promises is about that class.
        readout: What recovered maps were compared with: `latent` or `decoded`; see `MedSymmFlow.classify`.
        precision: Arithmetic of the network: `fp32`, `bf16`, `fp16` or `fp64`.
        convolution: What convolved: names of backends, the most frequent first, as in `native+onednn`.
        sample_distance: Distance to each class per draw, where samples were kept; [N, S, n_classes], NaN for draws
            that a stopped picture did not make.
        map_shape: Height and width of label maps, whose pixels, picture by picture and row by row, are then what the N
            rows are about; None where these are whole pictures.
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
    decision: DecisionMade
    readout: ReadoutName = "latent"
    precision: str = "fp32"
    convolution: str = "torch"
    sample_distance: Tensor | None = None
    map_shape: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Return the number of pictures, or of the pixels of label maps."""
        return len(self.label)

    def maps(self, values: Tensor) -> Tensor:
        """Return values of rows as maps, such as `maps(label)` or `maps(scores()["margin"])`.

        Args:
            values: One or more per row; [N * H * W, ...].

        Returns:
            [N, H, W, ...].

        Raises:
            ValueError: The rows are whole pictures.
        """
        if self.map_shape is None:
            raise ValueError("there are maps only where pixels have classes; the rows of this prediction are pictures")
        return values.reshape(-1, *self.map_shape, *values.shape[1:])

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
            if entry.name not in ("sample_distance", "map_shape")
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
    """Return a record of `Prediction.to_records` with one column per field and class, and lists as text."""
    row: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            classes = told_apart(list(value), ("source",))  # `probability_source` is a column of its own
            row.update({f"{name}_{c}": v for c, v in zip(classes, value.values(), strict=True)})
        elif isinstance(value, list):
            row[name] = "; ".join(map(str, value))
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
        n_pictures = len(prediction) // math.prod(prediction.map_shape or (1,))
        super().__init__(
            f"the network must give finite values; got others for picture {invalid[0]} ({len(invalid)} of "
            f"{n_pictures} pictures): its weights or its dtype do not serve it"
        )


UNCERTAINTY_SCORES: dict[str, Callable[[Prediction], Tensor]] = {
    "nearest_distance": lambda prediction: prediction.nearest_distance,
    "margin": lambda prediction: -prediction.margin,
    "predictive_entropy": lambda prediction: prediction.predictive_entropy,
    "expected_entropy": lambda prediction: prediction.expected_entropy,
    "mutual_information": lambda prediction: prediction.mutual_information,
    "least_confidence": lambda prediction: 1 - prediction.probability.amax(1),
    "disagreement": lambda prediction: 1 - prediction.votes.amax(1),
}
"""Every uncertainty score by name; higher means more uncertain, so `margin` is taken with a minus sign."""


def smoothed_votes(votes: Tensor, n_samples: int | Tensor) -> Tensor:
    """Return votes as an estimate that is never 0: `(n + 1/2) / (S + K/2)` for n of S draws and K classes.

    It is the posterior mean under Jeffreys' prior. A class without a vote is not impossible, only rarer than draws
    can tell; so the logarithm of the estimate is finite.

    Args:
        votes: Shares of the draws; [N, n_classes].
        n_samples: S, for all or per picture ([N]).

    Returns:
        [N, n_classes], rows sum to one.

    Source:
        Krichevsky and Trofimov, The performance of universal encoding, IEEE Trans. Inf. Theory 1981.
    """
    draws = torch.as_tensor(n_samples, dtype=votes.dtype, device=votes.device).reshape(-1, 1)
    return (votes * draws + 0.5) / (draws + votes.shape[1] / 2)


def entropy(probability: Tensor) -> Tensor:
    """Return the entropy of distributions over the last axis, in nats, with 0 ln 0 = 0.

    Args:
        probability: [..., n_classes], >= 0, summing to one over the last axis.

    Returns:
        [...], in [0, ln n_classes].

    Numerics:
        Terms are summed in ascending order and the sum is rounded to 12 decimals (in float64), so that distributions of
        the same shares in another order, such as votes, have equal entropies: ties stay ties.
    """
    terms: Tensor = torch.special.entr(probability).sort(-1).values
    return terms.sum(-1).round(decimals=_ENTROPY_DECIMALS) if terms.dtype == torch.float64 else terms.sum(-1)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What was accumulated over the draws of N pictures.

    Args:
        class_distance: Mean over draws of the distance to each class; [N, n_classes], float.
        distance_std: Standard deviation over draws of that distance; [N, n_classes].
        votes: Share of the draws nearest to each class; [N, n_classes].
        pixel_votes: Mean over draws of the share of pixels nearest to each class; [N, n_classes].
        code_probability: Class probabilities of the mean over draws of the code's weights; [N, n_classes]. Only where
            these are an estimate of p(label | picture), which the caller decides.
        code_entropy: Mean over draws of the entropy of each draw's own class probabilities, in nats; [N].
        code_mean: Mean over draws of each draw's own class probabilities; [N, n_classes]. None: `code_probability`.
        sample_distance: Distances per draw; [N, S, n_classes].
        stopped_by: What ended the draws: `votes`, a rule that counted `votes`; `rule`, another one; None: nothing.

    Raises:
        ValueError: Only one of `code_probability` and `code_entropy` is given.
    """

    class_distance: Tensor
    distance_std: Tensor
    votes: Tensor
    pixel_votes: Tensor
    code_probability: Tensor | None = None
    code_entropy: Tensor | None = None
    code_mean: Tensor | None = None
    sample_distance: Tensor | None = None
    stopped_by: Literal["votes", "rule"] | None = None

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
    or the argmax of `pixel_votes`, `probability`, or of `votes` where a stopping rule counted them, ties to the lowest
    class.

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
        mean = probability if draws.code_mean is None else draws.code_mean
    else:
        source = "votes" if draws.stopped_by is None else "stopped_votes"
        probability, expected_entropy, mean = votes, votes.new_zeros(len(votes)), votes
    made: DecisionMade = "votes" if draws.stopped_by == "votes" else decision
    compared = {
        "distance": -class_distance,
        "pixel_votes": draws.pixel_votes,
        "probability": probability,
        "votes": votes,
    }[made]
    label = compared.argmax(1)
    best, second = compared.topk(2, dim=1).values.unbind(1)
    return Prediction(
        label=label,
        probability=probability,
        class_distance=class_distance,
        distance_std=draws.distance_std,
        votes=votes,
        pixel_votes=draws.pixel_votes,
        predictive_entropy=entropy(probability),
        expected_entropy=expected_entropy,
        # The entropy is concave, so this is >= 0 but for rounding.
        mutual_information=(entropy(mean) - expected_entropy).clamp_min(0),
        nearest_distance=class_distance.gather(1, label[:, None]).squeeze(1),
        margin=best - second,
        n_samples=n_samples,
        nfe=nfe,
        micro_batch=micro_batch,
        probability_source=source,
        decision=made,
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


def check_score(name: str) -> None:
    """Refuse an uncertainty score that does not exist.

    Raises:
        ValueError: The text lists the known scores.
    """
    if name not in UNCERTAINTY_SCORES:
        raise ValueError(f"score must be one of {', '.join(UNCERTAINTY_SCORES)}; got {name!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
