"""Metrics of other libraries, from class probabilities [N, n_classes] and labels [N]."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from torch import Tensor

from benchmarks.peers import Unavailable, module_from_file


def torch_uncertainty_aurc(probability: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """Area under the risk-coverage curve of torch-uncertainty; its file alone, since its package imports a trainer."""
    module = module_from_file("torch_uncertainty", "metrics/classification/risk_coverage.py", "torch-uncertainty")

    def run() -> Tensor:
        metric = module.AURC()
        metric.update(probability, labels)
        area: Tensor = metric.compute()
        return area

    return run


def torchmetrics_aurc() -> NoReturn:
    """Say why torchmetrics is no peer here."""
    raise Unavailable("torchmetrics has no area under the risk-coverage curve")
