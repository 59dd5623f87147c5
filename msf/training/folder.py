"""The folder of a run: its training state and history, and what can be said of them when the run ends early."""

from __future__ import annotations

import csv
import io
import json
import shutil
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
METRICS_FILE = "metrics.csv"
EPOCHS_FOLDER = "epochs"
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
        self._experiment = experiment
        self._has_best = False
        sources = {
            "data_fingerprint": (data_fingerprint, "on other data"),
            "autoencoder_fingerprint": (autoencoder_fingerprint, "with another autoencoder"),
        }
        self._state = StateFile(path, "experiment", experiment, sources, upgrade=self._upgraded)
        self.extended_from: tuple[int, ...] | None = None

    def save(self, tensors: Mapping[str, Any], position: Position) -> None:
        """Replace the training state, then the history and its table.

        Args:
            tensors: State dicts of network, average and optimiser.
            position: Where the run stands.

        Raises:
            FloatingPointError: A tensor is not finite; the old state stays.
            OSError: The disk is full or not writable; the old state stays.
        """
        self._state.save({**tensors, "position": asdict(position)}, position.step)
        self._has_best = position.best_epoch >= 0
        self.write_history(position)

    def write_history(self, position: Position) -> None:
        """Write the history, as JSON and as a table, where it is not there as it is."""
        texts = {
            HISTORY_FILE: json.dumps(position.history, indent=2) + "\n",
            METRICS_FILE: _table(position.history) if position.history else "",
        }
        for name, text in texts.items():
            if not (self.path / name).exists() or (self.path / name).read_text() != text:
                write_atomically(self.path / name, lambda path, text=text: path.write_text(text))  # type: ignore[misc]

    def keep_epoch(self, save: Callable[[Path], object], epoch: int, n_kept: int) -> None:
        """Write the network of an epoch, and remove those of epochs before the last few.

        Args:
            save: Writes a checkpoint into the folder that it is given.
            epoch: Its number, from 0; folders count from 1, as progress does.
            n_kept: How many are kept, >= 1.
        """
        folder = self.path / EPOCHS_FOLDER
        save(folder / f"{epoch + 1:05d}")
        for old in sorted(path for path in folder.iterdir() if path.name.isdecimal())[:-n_kept]:
            shutil.rmtree(old)

    def restore(
        self, check: Callable[[Mapping[str, Any], Path], None], *, resume: bool, first_end: int
    ) -> tuple[dict[str, Any], Position] | None:
        """Return the saved tensors and where the run stood; None where there is no state.

        Args:
            check: Refuses tensors and positions that are not of this run; called with the state and its file.
            resume: Whether the run is to go on.
            first_end: Epochs of the run without its extensions.

        Raises:
            ValueError: The folder holds a run or a checkpoint and `resume` is false; or a damaged state; or the state
                of another configuration, of other data or with another autoencoder; or the run is to be extended and
                is not there, or has not ended.
        """
        state = self._state.restore(_FIELDS, resume=resume)
        wanted = tuple(self._experiment["train"]["extensions"])
        if state is None:
            if wanted:
                raise ValueError(
                    f"extend goes on from a run that has ended; folder {str(self.path)!r} holds none: train without "
                    "--extend first"
                )
            if not resume and (self.path / WEIGHTS_FILE).exists():
                raise ValueError(
                    f"folder {str(self.path)!r} holds a checkpoint, which a training would replace: choose another "
                    "folder, or allow it with --resume (resume=True)"
                )
            return None
        require_state_fields(state, self._state.path)
        if state["position"].get("epoch_loss") == 0.0:  # between two epochs; states of before have no sums of the terms
            state["position"] = {"epoch_image_loss": 0.0, "epoch_semantic_loss": 0.0, **state["position"]}
        check(state, self._state.path)
        position = Position(**state["position"])
        if self.extended_from is not None:
            n_before = first_end + sum(self.extended_from)
            if len(position.history) < n_before:
                raise ValueError(
                    f"extend goes on from a run that has ended; the one in {str(self.path)!r} is in epoch "
                    f"{len(position.history) + 1} of {n_before}: finish it with --resume and without the new --extend"
                )
        self._state.saved_step, self._has_best = position.step, position.best_epoch >= 0
        return state, position

    def _upgraded(self, saved: Any) -> dict[str, Any]:
        """Return a saved configuration as one of today; of a run that this one extends: with the extension."""
        upgraded = ExperimentConfig.from_dict(saved).to_dict()
        before, wanted = (tuple(config["train"]["extensions"]) for config in (upgraded, self._experiment))
        if before != wanted and before == wanted[: len(before)]:
            self.extended_from = before
            upgraded["train"]["extensions"] = wanted
        return upgraded

    def kept(self, n_steps: int) -> str:
        """Return a sentence on what of a run of `n_steps` steps is on the disk."""
        has_best = self._has_best and (self.path / WEIGHTS_FILE).exists()
        best = f", {WEIGHTS_FILE} beside it the best epoch so far" if has_best else ""
        return self._state.kept(n_steps) + best


def _table(history: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
