"""The folder of a run: its training state and history, and what can be said of them when the run ends early."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msf.checkpoints.folder import WEIGHTS_FILE
from msf.config import ExperimentConfig
from msf.files.atomic import write_atomically
from msf.files.state import StateFile
from msf.training.progress import Position
from msf.training.state import require_state_fields

HISTORY_FILE = "history.json"
_FIELDS = ("network", "average", "optimizer", "position")


class RunFolder:
    """The files of one run beside its checkpoint.

    Args:
        path: The folder; exists when something is written.
        experiment: Configuration of the run, as plain values; a state of another one is refused.
        data_fingerprint: Of the data set; likewise.
        autoencoder_fingerprint: Of the autoencoder; likewise.
    """

    def __init__(
        self, path: Path, experiment: Mapping[str, Any], data_fingerprint: str, autoencoder_fingerprint: str
    ) -> None:
        """Read and write nothing yet."""
        self.path = path
        self._has_best = False
        sources = {
            "data_fingerprint": (data_fingerprint, "on other data"),
            "autoencoder_fingerprint": (autoencoder_fingerprint, "with another autoencoder"),
        }
        self._state = StateFile(
            path, "experiment", experiment, sources, upgrade=lambda saved: ExperimentConfig.from_dict(saved).to_dict()
        )

    def save(self, tensors: Mapping[str, Any], position: Position) -> None:
        """Replace the training state, then the history.

        Args:
            tensors: State dicts of network, average and optimiser.
            position: Where the run stands.

        Raises:
            FloatingPointError: A tensor is not finite; the old state stays.
            OSError: The disk is full or not writable; the old state stays.
        """
        self._state.save({**tensors, "position": asdict(position)}, position.step)
        self._has_best = position.best_epoch >= 0
        history = json.dumps(position.history, indent=2) + "\n"
        write_atomically(self.path / HISTORY_FILE, lambda path: path.write_text(history))

    def restore(
        self, check: Callable[[Mapping[str, Any], Path], None], *, resume: bool
    ) -> tuple[dict[str, Any], Position] | None:
        """Return the saved tensors and where the run stood; None where there is no state.

        Args:
            check: Refuses tensors and positions that are not of this run; called with the state and its file.
            resume: Whether the run is to go on.

        Raises:
            ValueError: The folder holds a run or a checkpoint and `resume` is false; or a damaged state; or the state
                of another configuration, of other data or with another autoencoder.
        """
        state = self._state.restore(_FIELDS, resume=resume)
        if state is None:
            if not resume and (self.path / WEIGHTS_FILE).exists():
                raise ValueError(
                    f"folder {str(self.path)!r} holds a checkpoint, which a training would replace: choose another "
                    "folder, or allow it with --resume (resume=True)"
                )
            return None
        require_state_fields(state, self._state.path)
        check(state, self._state.path)
        position = Position(**state["position"])
        self._state.saved_step, self._has_best = position.step, position.best_epoch >= 0
        return state, position

    def kept(self, n_steps: int) -> str:
        """Return a sentence on what of a run of `n_steps` steps is on the disk."""
        has_best = self._has_best and (self.path / WEIGHTS_FILE).exists()
        best = f", {WEIGHTS_FILE} beside it the best epoch so far" if has_best else ""
        return self._state.kept(n_steps) + best
