"""Which trained network a command works on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msf.cli import console

if TYPE_CHECKING:
    from msf.medsymmflow import MedSymmFlow

RUNS = Path("runs")
_CHECKPOINT_FILES = ("config.json", "model.safetensors", "training_state.pt", "history.json", "calibration.json")


def load_flow(checkpoint: str | None, device: str | None) -> MedSymmFlow:
    """Load the named checkpoint, or the newest one under `runs/`, on the device.

    Raises:
        FileNotFoundError: None was named and there is none; or the named one is not to be had.
        ValueError: It is not a checkpoint, or this machine has no such device.
    """
    from msf.device import choose_device
    from msf.medsymmflow import MedSymmFlow

    chosen = choose_device(device)
    return MedSymmFlow.from_pretrained(named_checkpoint(checkpoint)).to(chosen)


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
