"""The folder of `msf generate`: whose pictures lie in it, so that runs are neither mixed nor overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msf.files.atomic import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

RUN_FILE = "generated.json"
GRID_FILE = "overview/grid.png"
_PICTURE = re.compile(r"\d{2,}-\d{4,}\.png")


class GeneratedFolder:
    """A folder with one picture per class and number.

    Args:
        folder: Made where it is missing.
        labels: The classes, each once.
        n: Pictures per class.
    """

    def __init__(self, folder: Path, labels: Sequence[int], n: int) -> None:
        """Name the files."""
        self.folder = folder
        self.labels = list(labels)
        self.n = n
        self.files = [folder / f"{label:02d}-{number:04d}.png" for label in labels for number in range(n)]
        self.grid = folder / GRID_FILE
        self.run_file = folder / RUN_FILE

    @property
    def n_written(self) -> int:
        """Number of the pictures that are there."""
        return sum(file.exists() for file in self.files)

    def claim(self, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Note what the pictures are made with, or find that the folder's are made with the same.

        Raises:
            ValueError: The folder holds pictures of another run.
        """
        run = {"network": _digest(weights), "labels": self.labels, "n": self.n, **settings}
        there = _read(self.run_file)
        self.folder.mkdir(parents=True, exist_ok=True)
        found = sum(_PICTURE.fullmatch(name) is not None for name in os.listdir(self.folder))
        if found and there != run:  # a note without pictures is of a run that made none
            old = there or {}
            different = [name for name in run if old.get(name) != run[name]] if there else []
            why = f" (another {', '.join(different)})" if different else ""
            raise ValueError(
                f"{str(self.folder)!r} holds {found} pictures of another run{why}: give another folder with --out, or "
                "remove it"
            )
        self.grid.parent.mkdir(exist_ok=True)
        write_atomically(
            self.run_file, lambda path: path.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {}


def _digest(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
