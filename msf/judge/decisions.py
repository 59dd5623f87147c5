"""What calibration pictures taught about one way of predicting, and what follows from it for others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from msf.config import ScalingMethod, ScalingSource, SetMethod
from msf.judge.conformal import PredictionSets, fit_sets, pictures_needed
from msf.judge.referral import ReferralRule, fit_referral
from msf.judge.resampling import Array
from msf.judge.scaling import Scaling, fit_scaling
from msf.judge.uncertainty import Prediction, check_score
from msf.plain_values import told_apart

_SAME = 1e-12


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What calibration shall give.

    Args:
        score: Uncertainty score of the referral; None: `recommended_score`.
        risks: Accepted error rates among kept pictures, one threshold each.
        delta: Accepted probability that such a rate is exceeded.
        levels: Coverages of prediction sets.
        set_method: Kind of the sets; None: `split` where probabilities come from the code, else `distance`.
        scaling: How probabilities are scaled.
        scaling_source: What is scaled; None: see `msf.judge.scaling.fit_scaling`.
        seed: Of what is chosen at random.

    Raises:
        ValueError: An unknown score, or numbers outside (0, 1).
    """

    score: str | None = None
    risks: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1)
    delta: float = 0.1
    levels: tuple[float, ...] = (0.8, 0.9, 0.95, 0.99)
    set_method: SetMethod | None = None
    scaling: ScalingMethod = "temperature"
    scaling_source: ScalingSource | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a prediction."""
        if self.score is not None:
            check_score(self.score)
        for name, values in (("risk", self.risks), ("delta", (self.delta,)), ("level", self.levels)):
            for value in values:
                if not 0 < value < 1:
                    raise ValueError(f"{name} must be in (0, 1); got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scaled probabilities, prediction sets and referral thresholds of one network with one set of settings.

    Scaling is fitted on all calibration pictures; sets and thresholds are made from what the network says unscaled, so
    that nothing which was fitted on those pictures enters a guarantee about them.

    Args:
        made_with: What decides the numbers of a prediction; another prediction must be made with the same.
        computed_on: The calibration pictures: data set, split, numbers.
        scaling: Of the probabilities.
        sets: One per level.
        referral: One per risk.
        notes: Sentences about what the guarantees do not cover here.
    """

    made_with: Mapping[str, Any]
    computed_on: Mapping[str, Any]
    scaling: Scaling
    sets: tuple[PredictionSets, ...]
    referral: tuple[ReferralRule, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def digest(self) -> str:
        """SHA-256 over everything that it holds."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True, allow_nan=False).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, with its digest."""
        return {**self._content(), "digest": self.digest}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Build from plain values.

        Raises:
            ValueError: They are not what `to_dict` returns, or were changed.
        """
        try:
            found = cls(
                made_with=dict(values["made_with"]),
                computed_on=dict(values["computed_on"]),
                scaling=Scaling.from_dict(values["scaling"]),
                sets=tuple(PredictionSets.from_dict(entry) for entry in values["sets"]),
                referral=tuple(ReferralRule.from_dict(entry) for entry in values["referral"]),
                notes=tuple(values["notes"]),
            )
            is_same = found.digest == values["digest"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"it is not what 'msf calibrate' writes ({type(error).__name__}: {error})") from error
        if not is_same:
            raise ValueError("it was changed: its digest is another one")
        return found

    def require_same(self, made_with: Mapping[str, Any]) -> None:
        """Refuse a prediction that is made otherwise than those of the calibration pictures.

        Raises:
            ValueError: The text names what differs.
        """
        names = sorted({*self.made_with, *made_with})
        different = [name for name in names if self.made_with.get(name) != made_with.get(name)]
        if different:
            listed = ", ".join(
                f"{name} {_short(self.made_with.get(name))} then, {_short(made_with.get(name))} now"
                for name in different
            )
            raise ValueError(f"the calibration was made with something else ({listed}): calibrate again, or set it so")

    def rule_for(self, risk: float) -> ReferralRule:
        """Return the threshold for a risk.

        Raises:
            ValueError: There is none for that risk (the text lists those there are), or no threshold passed the test.
        """
        for rule in self.referral:
            if abs(rule.risk - risk) < _SAME:
                if rule.threshold is None:
                    raise ValueError(f"refer-at cannot be met: {rule.why_none()}")
                return rule
        known = ", ".join(f"{rule.risk:g}" for rule in self.referral)
        raise ValueError(f"refer-at must be a risk that was calibrated for ({known}); got {risk:g}")

    def sets_for(self, level: float) -> PredictionSets:
        """Return the rule of the sets of a level.

        Raises:
            ValueError: There is none for that level (the text lists those there are), or there were too few pictures
                to rule out any class.
        """
        for sets in self.sets:
            if abs(sets.level - level) < _SAME:
                if sets.says_nothing:
                    raise ValueError(
                        f"sets cannot be given at {level:g}: {sets.n_images} calibration pictures rule out no class; "
                        f"{pictures_needed(level)} are the least"
                    )
                return sets
        known = ", ".join(f"{sets.level:g}" for sets in self.sets)
        raise ValueError(f"sets must be a level that was calibrated for ({known}); got {level:g}")

    def _content(self) -> dict[str, Any]:
        return {
            "made_with": dict(self.made_with),
            "computed_on": dict(self.computed_on),
            "scaling": self.scaling.to_dict(),
            "sets": [{**entry.to_dict(), "quantile": list(entry.quantile)} for entry in self.sets],
            "referral": [rule.to_dict() for rule in self.referral],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class PictureDecisions:
    """What a calibration says of single pictures.

    Args:
        digest: Of the calibration.
        rule: Which pictures to refer to a person; None: nothing is said of it.
        sets: Which classes cannot be ruled out; None: likewise.
        scaling: Scaled probabilities; None: there are none.
    """

    digest: str
    rule: ReferralRule | None = None
    sets: PredictionSets | None = None
    scaling: Scaling | None = None

    @property
    def score(self) -> str | None:
        """Name of the score that decides who is referred."""
        return None if self.rule is None else self.rule.score

    def described(self) -> dict[str, Any]:
        """Return it as plain values, for the provenance of a result."""
        return {
            "calibration_sha256": self.digest,
            "refer_at": None if self.rule is None else self.rule.to_dict(),
            "sets": None if self.sets is None else {**self.sets.to_dict(), "quantile": list(self.sets.quantile)},
            "scaling": None if self.scaling is None else self.scaling.method,
        }

    def records(self, prediction: Prediction, class_names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        """Return of every picture what was asked for: `is_referred`, `prediction_set`, `scaled_probability`.

        Args:
            prediction: Made as the calibration was.
            class_names: Names of the classes; default: their numbers.
        """
        classes = told_apart(class_names or tuple(map(str, range(prediction.probability.shape[1]))))
        records: list[dict[str, Any]] = [{} for _ in range(len(prediction))]
        if self.rule is not None:
            values = prediction.scores()[self.rule.score].double().cpu().numpy()
            for record, is_referred in zip(records, self.rule.refers(values).tolist(), strict=True):
                record["is_referred"] = is_referred
        if self.sets is not None:
            for record, inside in zip(records, self.sets(prediction).tolist(), strict=True):
                record["prediction_set"] = [name for name, is_in in zip(classes, inside, strict=True) if is_in]
        if self.scaling is not None:
            for record, probability in zip(records, self.scaling(prediction).tolist(), strict=True):
                record["scaled_probability"] = dict(zip(classes, probability, strict=True))
        return records


def recommended_score(prediction: Prediction) -> str:
    """Return the uncertainty score to refer by where none is asked for.

    `least_confidence` where probabilities come from the code, else `margin`.
    """
    return "least_confidence" if prediction.probability_source == "mean_code" else "margin"


def fit_calibration(
    prediction: Prediction,
    labels: Tensor,
    wishes: Wishes,
    *,
    made_with: Mapping[str, Any],
    computed_on: Mapping[str, Any],
    groups: Array | None = None,
    notes: Sequence[str] = (),
) -> Calibration:
    """Return everything that was wished for; what the pictures do not suffice for says so.

    Args:
        prediction: Of N >= 2 calibration pictures.
        labels: True classes; [N], int64.
        wishes: What to make.
        made_with: What decides the numbers of the prediction.
        computed_on: The pictures.
        groups: What pictures share, such as the patient; see `msf.judge.referral.fit_referral`.
        notes: Sentences to keep.

    Raises:
        ValueError: Fewer than two pictures.
    """
    is_code = prediction.probability_source == "mean_code"
    score = wishes.score or recommended_score(prediction)
    set_method: SetMethod = wishes.set_method or ("split" if is_code else "distance")
    is_error = (prediction.label != labels.to(prediction.label.device)).cpu().numpy()
    values = prediction.scores()[score].double().cpu().numpy()
    rules = tuple(
        fit_referral(values, is_error, name=score, risk=risk, delta=wishes.delta, groups=groups, seed=wishes.seed)
        for risk in wishes.risks
    )
    return Calibration(
        made_with=made_with,
        computed_on=computed_on,
        scaling=fit_scaling(prediction, labels, wishes.scaling, wishes.scaling_source),
        sets=tuple(fit_sets(prediction, labels, level, set_method) for level in wishes.levels),
        referral=rules,
        notes=tuple(notes),
    )


def decision_outcomes(calibration: Calibration, prediction: Prediction, labels: Tensor) -> dict[str, Any]:
    """Return what a calibration's decisions come to on other labelled pictures: the check of what it promises.

    Args:
        calibration: Made with the same network and settings.
        prediction: Of N pictures that were not calibrated on.
        labels: True classes; [N], int64.

    Returns:
        JSON-ready. `referral`: of every threshold its `risk`, `delta`, `score`, `coverage` (share that is kept),
        `n_kept` and `error_rate` among them (None where nothing is kept or there is no threshold). `sets`: of every
        level its `method`, `coverage` (share of the sets that hold the true class) and `mean_size`. `scaled`: `nll` and
        `brier` of the scaled probabilities.
    """
    labels = labels.cpu()
    is_error = (prediction.label.cpu() != labels).numpy()
    referral = []
    for rule in calibration.referral:
        found: dict[str, Any] = {"risk": rule.risk, "delta": rule.delta, "score": rule.score}
        n_kept, error_rate = 0, None
        if rule.threshold is not None:
            kept = ~rule.refers(prediction.scores()[rule.score].double().cpu().numpy())
            n_kept = int(kept.sum())
            error_rate = float(is_error[kept].mean()) if n_kept else None
        referral.append({**found, "coverage": n_kept / len(labels), "n_kept": n_kept, "error_rate": error_rate})
    sets = []
    for entry in calibration.sets:
        inside = entry(prediction)
        covered = inside.gather(1, labels[:, None]).double().mean()
        size = inside.sum(1).double().mean()
        sets.append(
            {"level": entry.level, "method": entry.method, "coverage": float(covered), "mean_size": float(size)}
        )
    scaled = calibration.scaling(prediction)
    own = scaled.gather(1, labels[:, None])
    squares = (scaled.square().sum(1) - 2 * own[:, 0] + 1).mean()
    return {"referral": referral, "sets": sets, "scaled": {"nll": float(-own.log().mean()), "brier": float(squares)}}


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
