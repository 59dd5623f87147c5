"""Which trained network a command works on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msf.cli import console

if TYPE_CHECKING:
    from msf.medsymmflow import MedSymmFlow

RUNS = Path("runs")
_CHECKPOINT_FILES = (
    "config.json",
    "model.safetensors",
    "training_state.pt",
    "history.json",
    "metrics.csv",
    "calibration.json",
)


def load_flow(checkpoint: str | None, device: str | None, *, of_pixels: bool = False) -> MedSymmFlow:
    """Load the named checkpoint, or the newest one under `runs/`, on the device.

    Args:
        checkpoint: Folder or hub id; None: the newest.
        device: As for `choose_device`.
        of_pixels: Whether the command also takes networks that give every pixel a class.

    Raises:
        FileNotFoundError: None was named and there is none; or the named one is not to be had.
        ValueError: It is not a checkpoint, or not one that the command takes, or this machine has no such device.
    """
    from msf.device import choose_device
    from msf.medsymmflow import MedSymmFlow

    chosen = choose_device(device)
    folder = named_checkpoint(checkpoint)
    flow = MedSymmFlow.from_pretrained(folder).to(chosen)
    if flow.task.is_per_pixel and not of_pixels:
        raise ValueError(
            f"the network must give pictures their classes; {folder!r} gives them to pixels, for which there are "
            "'msf evaluate', and MedSymmFlow.classify in Python"
        )
    return flow


def named_checkpoint(checkpoint: str | None) -> str:
    """Return the named checkpoint, or the newest one under `runs/`, which is told.

    Raises:
        FileNotFoundError: None was named and there is none.
    """
    if checkpoint is not None:
        return checkpoint
    found = sorted(RUNS.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"no checkpoint was named and there is none under {str(RUNS)!r}: "
            "train one with 'msf train', or name one with --checkpoint"
        )
    newest = str(found[-1].parent)
    console.err.print(f"using the newest checkpoint, {console.printable(newest)}")
    return newest


def files_of(checkpoint: str | None) -> list[Path]:
    """Return the files of a checkpoint, there or to come, which no result may replace."""
    return [Path(checkpoint) / name for name in _CHECKPOINT_FILES] if checkpoint else []
