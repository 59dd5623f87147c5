"""Metrics on their way to TensorBoard, Weights & Biases or trackio, through accelerate's trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msf.plain_values import require

EVENTS_FOLDER = "tensorboard"
_PROJECT = "medsymmflow"
_EXTRAS = ("tensorboard", "wandb", "trackio")


def tracker_names(wanted: str | None) -> list[str]:
    """Return the trackers that a run reports to.

    Args:
        wanted: Names separated by commas, or `none`; None: TensorBoard if it is installed.

    Raises:
        ValueError: An unknown name, or a tracker that is not installed; the text names the extra.
    """
    if wanted is None:
        return ["tensorboard"] if _is_installed("tensorboard") else []
    names = [name.strip().lower() for name in wanted.split(",")]
    if names == ["none"]:
        return []
    for name in names:
        require(name in _EXTRAS, "track", f"none, or among {', '.join(_EXTRAS)}, separated by commas", wanted)
        require(_is_installed(name), "track", f"an installed tracker: pip install 'medsymmflow[{name}]'", wanted)
    return list(dict.fromkeys(names))


def make_trackers(names: list[str], folder: Path, configuration: Mapping[str, Any], step: int) -> list[Any]:
    """Return trackers that have begun; called by the main process alone.

    Args:
        names: What `tracker_names` returned.
        folder: Of the run; events of TensorBoard go to `tensorboard` inside.
        configuration: Of the run, as nested plain values.
        step: Where the run stands; events of later steps, which an interrupted run has left, are void.
    """
    from accelerate.tracking import TensorBoardTracker, TrackioTracker, WandBTracker

    trackers: list[Any] = []
    for name in names:
        if name == "tensorboard":
            tracker = TensorBoardTracker(EVENTS_FOLDER, logging_dir=folder, purge_step=step)
        else:
            tracker = {"wandb": WandBTracker, "trackio": TrackioTracker}[name](_PROJECT, name=folder.name)
        tracker.start()
        if name != "tensorboard":  # it would make a run of its own for them; config.json lies beside the events
            tracker.store_init_configuration(_flat(configuration))
        trackers.append(tracker)
    return trackers


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
