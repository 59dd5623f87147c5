"""Probabilities made to fit what happened on labelled pictures: temperature, vector and Dirichlet scaling."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msf.config import ScalingMethod, ScalingSource
from msf.judge.uncertainty import Prediction, smoothed_votes

PROBABILITY_FLOOR = 1e-6
# Standard deviation of the normal prior of every parameter around "no change": what keeps pictures that are all right,
# or fewer than parameters, from infinite slopes.
_PRIOR_STD = 3.0
_MOST_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """A map from what a prediction holds to probabilities: `softmax(weight @ z + bias)`.

    Args:
        method: `temperature`: one factor. `vector`: a factor and an offset per class. `dirichlet`: a full matrix.
        source: What z is: `probability`, its logarithm (of smoothed votes, where it is votes), or `distance`, minus
            the distances to the classes, divided by `unit`.
        weight: [n_classes][n_classes].
        bias: [n_classes].
        unit: Divides distances.
        n_images: Pictures that it was fitted on.
        nll_before: Mean negative log-likelihood of those without the map (weight the identity), in nats.
        nll_after: The same with it.

    Source:
        Guo et al., On calibration of modern neural networks, ICML 2017 (temperature, vector); Kull et al., Beyond
        temperature scaling, NeurIPS 2019 (Dirichlet).
    """

    method: ScalingMethod
    source: ScalingSource
    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    unit: float
    n_images: int
    nll_before: float
    nll_after: float

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return scaled probabilities of a prediction's pictures; [N, n_classes], float64, on the CPU."""
        z = _inputs(prediction, self.source) / self.unit
        weight, bias = (torch.tensor(values, dtype=torch.float64) for values in (self.weight, self.bias))
        return torch.softmax(z @ weight.T + bias, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Scaling:
        """Build from plain values."""
        rows = tuple(tuple(map(float, row)) for row in values["weight"])
        return cls(**{**values, "weight": rows, "bias": tuple(map(float, values["bias"]))})


def fit_scaling(
    prediction: Prediction, labels: Tensor, method: ScalingMethod = "temperature", source: ScalingSource | None = None
) -> Scaling:
    """Fit a map to labelled pictures, by penalised maximum likelihood.

    `mean_i -ln p_i[label_i] + sum of squared changes of the parameters / (2 N 3^2)`, where the parameters are the
    logarithm of the factor for `temperature`, and weights and offsets else; no change is the identity.

    Args:
        prediction: Of N >= 1 pictures.
        labels: True classes; [N], int64.
        method: See `Scaling`.
        source: See `Scaling`; None: `probability` where it comes from the code, else `distance`.

    Returns:
        The map.

    Numerics:
        float64, L-BFGS from the identity; a class without pictures is only made rarer.
    """
    chosen: ScalingSource = source or ("probability" if prediction.probability_source == "mean_code" else "distance")
    z, labels = _inputs(prediction, chosen), labels.cpu()
    unit = float(z.std(1, correction=0).mean()) if chosen == "distance" else 1.0
    unit = unit if unit > 0 else 1.0
    z = z / unit
    n_classes = z.shape[1]
    start, build = _PARAMETERS[method](n_classes)
    parameters = start.clone().requires_grad_()

    def nll(values: Tensor) -> Tensor:
        weight, bias = build(values)
        return torch.nn.functional.cross_entropy(z @ weight.T + bias, labels)

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = nll(parameters) + (parameters - start).square().sum() / (2 * len(z) * _PRIOR_STD**2)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=_MOST_STEPS, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )
    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        weight, bias = build(parameters)
        return Scaling(
            method=method,
            source=chosen,
            weight=tuple(tuple(row) for row in weight.tolist()),
            bias=tuple(bias.tolist()),
            unit=unit,
            n_images=len(z),
            nll_before=float(nll(start)),
            nll_after=float(nll(parameters)),
        )


def _inputs(prediction: Prediction, source: ScalingSource) -> Tensor:
    if source == "distance":
        return -prediction.class_distance.double().cpu()
    probability = prediction.probability.double().cpu()
    if prediction.probability_source != "mean_code":
        n_samples = prediction.n_samples
        probability = smoothed_votes(probability, n_samples.cpu() if isinstance(n_samples, Tensor) else n_samples)
    return probability.clamp_min(PROBABILITY_FLOOR).log()


_Build = Callable[[Tensor], tuple[Tensor, Tensor]]


def _temperature(n_classes: int) -> tuple[Tensor, _Build]:
    identity = torch.eye(n_classes, dtype=torch.float64)
    nothing = torch.zeros(n_classes, dtype=torch.float64)
    return torch.zeros(1, dtype=torch.float64), lambda values: (values.exp() * identity, nothing)


def _vector(n_classes: int) -> tuple[Tensor, _Build]:
    start = torch.cat([torch.ones(n_classes, dtype=torch.float64), torch.zeros(n_classes, dtype=torch.float64)])
    return start, lambda values: (torch.diag(values[:n_classes]), values[n_classes:])


def _dirichlet(n_classes: int) -> tuple[Tensor, _Build]:
    start = torch.cat([torch.eye(n_classes, dtype=torch.float64), torch.zeros(1, n_classes, dtype=torch.float64)])
    return start, lambda values: (values[:-1], values[-1])


_PARAMETERS: dict[str, Callable[[int], tuple[Tensor, _Build]]] = {
    "temperature": _temperature,
    "vector": _vector,
    "dirichlet": _dirichlet,
}
