"""What a run tells while it runs: to a callback, and to trackers of metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from msf.config import TrainConfig
from msf.training.progress import Position, TrainingProgress
from msf.training.schedule import Schedule


class Reporter:
    """Tells how far a run is; the main process has one that speaks, the others one that keeps still.

    Args:
        settings: `batch_size` and `selection` are read.
        schedule: Steps and epochs of the whole run.
        progress: The callback, or None.
        trackers: That have begun; none in other processes than the main one.
        step: Where the run stands.
    """

    def __init__(
        self,
        settings: TrainConfig,
        schedule: Schedule,
        progress: Callable[[TrainingProgress], None] | None,
        trackers: list[Any],
        step: int,
    ) -> None:
        """Start the clock."""
        self._settings = settings
        self._schedule = schedule
        self._progress = progress
        self._trackers = trackers
        self._step = step
        self._time = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the last report."""
        return time.monotonic() - self._time

    def tell(self, position: Position, epoch: int, terms: list[float], validated: float | None = None) -> None:
        """Tell where the run stands.

        Args:
            position: Where that is.
            epoch: Current epoch, from 0.
            terms: Mean loss, image term and semantic term of the epoch so far.
            validated: As in `TrainingProgress`.
        """
        n_steps, seconds = position.step - self._step, self.seconds
        rate = n_steps * self._settings.batch_size / seconds if n_steps and seconds > 0 else None
        self._step, self._time = position.step, time.monotonic()
        total, image, semantic = terms
        if validated == 1:
            self._track({name: value for name, value in position.history[-1].items() if value is not None}, position)
        elif validated is None:
            self._track({"train_loss": total, "image_loss": image, "semantic_loss": semantic}, position)
        if self._progress is not None:
            rows = [row for row in position.history if row[self._settings.selection] is not None]
            self._progress(
                TrainingProgress(
                    position.step,
                    self._schedule.n_steps,
                    epoch,
                    self._schedule.n_epochs,
                    total,
                    rows[-1] if rows else None,
                    validated,
                    image,
                    semantic,
                    rate,
                )
            )

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.finish()

    def _track(self, figures: dict[str, Any], position: Position) -> None:
        for tracker in self._trackers:
            tracker.log(figures, step=position.step)
