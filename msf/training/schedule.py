"""How the learning rate runs, how long a run is with its extensions, and when it validates."""

from __future__ import annotations

import math
from itertools import accumulate

from msf.config import ClassifySettings, TrainConfig
from msf_kernels.solvers import get_tableau

# A step evaluates the network on a picture once forward and about twice as long backward.
_EVALUATIONS_OF_A_STEP = 3
_MOST_SHARE = 0.1


def one_cycle(step: int, n_steps: int, settings: TrainConfig) -> float:
    """Return the learning rate of a step: a half cosine up, a half cosine down.

    Args:
        step: From 0.
        n_steps: Of the cycle.
        settings: `learning_rate`, `min_learning_rate` and `warmup_share` are read.
    """
    low, high = settings.min_learning_rate, settings.learning_rate
    n_rising = settings.warmup_share * n_steps
    n_falling = max(n_steps - 1 - n_rising, 1)
    share = 1 - step / n_rising if step < n_rising else (step - n_rising) / n_falling
    return low + (high - low) * (1 + math.cos(math.pi * min(share, 1.0))) / 2


class Schedule:
    """The epochs and steps of a run, in cycles: its own, and one for each of its extensions.

    Args:
        settings: `epochs` or `steps`, `extensions` and what `one_cycle` reads.
        n_pictures: Training pictures, of which `settings.batch_size` make a step.

    Attributes:
        steps_per_epoch: Steps of every epoch.
        cycle_ends: Epochs at which a cycle ends, ascending.
        n_epochs: Of all cycles.
        n_steps: Of all cycles.
    """

    def __init__(self, settings: TrainConfig, n_pictures: int) -> None:
        """Add up the cycles."""
        self._settings = settings
        self.steps_per_epoch = math.ceil(n_pictures / settings.batch_size)
        self.cycle_ends = list(accumulate((settings.n_epochs(n_pictures), *settings.extensions)))
        self.n_epochs = self.cycle_ends[-1]
        self.n_steps = self.n_epochs * self.steps_per_epoch

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step, in [0, n_steps)."""
        ends = [end * self.steps_per_epoch for end in self.cycle_ends]
        start, end = next((low, high) for low, high in zip([0, *ends], ends, strict=False) if step < high)
        return one_cycle(step - start, end - start, self._settings)


def validation_interval(settings: TrainConfig, inference: ClassifySettings, n_train: int, n_val: int) -> int:
    """Return after how many epochs the network is validated.

    Where the configuration does not say: as often as the evaluations of the network in a validation are at most a
    tenth of those in the epochs between two, and every epoch at most. A count, no measured time: a run that goes on
    on another machine must validate at the same epochs.

    Args:
        settings: `validate_every` and `validation_samples` are read.
        inference: Steps and method of a classification.
        n_train: Pictures to train on.
        n_val: Pictures to validate on.

    Returns:
        Epochs, >= 1.
    """
    if settings.validate_every is not None:
        return settings.validate_every
    per_draw = inference.n_steps * get_tableau(inference.method).n_stages
    share = n_val * settings.validation_samples * per_draw / (_EVALUATIONS_OF_A_STEP * n_train)
    return max(1, math.ceil(share / _MOST_SHARE))
