"""What a run tells of itself: on the way, at the end, and to the one that goes on with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msf.config import LOWER_IS_BETTER, Selection


@dataclass(frozen=True)
class TrainingProgress:
    """What a progress callback is told.

    Args:
        step: Optimiser steps done, of `n_steps`.
        n_steps: Steps of the whole run.
        epoch: Current epoch, from 0.
        n_epochs: Epochs of the whole run.
        loss: Mean training loss of this epoch so far.
        validation: The history's row of the last epoch that was validated, None before the first.
        validated: Share of the current validation that is done, in [0, 1]; None while the network is trained. 1: the
            epoch has ended, and `validation` is its own if it was validated.
        image_loss: Mean image term of this epoch so far, without weight.
        semantic_loss: Mean semantic term of this epoch so far, without weight.
        images_per_second: Pictures that were trained on per second since the last report; None where none were.
    """

    step: int
    n_steps: int
    epoch: int
    n_epochs: int
    loss: float
    validation: dict[str, Any] | None
    validated: float | None = None
    image_loss: float | None = None
    semantic_loss: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Args:
        folder: Holds the checkpoint of the best epoch.
        best_epoch: From 0.
        best_value: Its value of the selection figure, on the validation split.
        history: One dictionary per epoch.
        seconds: Training time of all parts of the run, validation included.
        device: What it was trained on.
        precision: Arithmetic of the network in training: `fp32` or `bf16`.
        n_processes: Processes that shared the batches.
        taken_over: What this call took from another network (`init`), in words; None: nothing.
    """

    folder: Path
    best_epoch: int
    best_value: float
    history: list[dict[str, Any]]
    seconds: float
    device: str
    precision: str
    n_processes: int = 1
    taken_over: str | None = None


def is_better(value: float, best: float, selection: Selection) -> bool:
    """Return whether a figure of the validation is better than the best so far, which is -inf before the first."""
    if best == -math.inf:
        return True
    return value < best if selection in LOWER_IS_BETTER else value > best


@dataclass
class Position:
    """Where a run stands; saved as plain values.

    The current epoch is the number of entries in `history`: an epoch whose steps are done and whose validation is not
    is still the current one.
    """

    step: int = 0
    epoch_loss: float = 0.0  # sum over the steps of the unfinished epoch, as are its terms
    epoch_image_loss: float = 0.0
    epoch_semantic_loss: float = 0.0
    best_epoch: int = -1
    best_value: float = -math.inf
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
