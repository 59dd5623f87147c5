"""What of a long study is done: a row per finished piece, kept through a kill and never computed twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msf.files.journal import Journal


class Ledger:
    """A journal whose rows have keys.

    Args:
        path: The file; its folder exists.
        made_with: What all pieces depend on, JSON-ready.

    Attributes:
        pieces: The finished ones by their key.

    Raises:
        ValueError: The file is of another study, or damaged.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        """Read what is there; a line that a killed process left half is cut off."""
        self.pieces: dict[str, dict[str, Any]] = {}
        self._journal = Journal(path, made_with, resume=True)
        for _, piece in self._journal.rows():
            if not isinstance(piece.get("key"), str):
                self.close()
                raise ValueError(f"{str(path)!r} is damaged: a line has no key; remove it to start anew")
            self.pieces[piece["key"]] = piece

    def add(self, key: str, piece: Mapping[str, Any]) -> None:
        """Keep a finished piece; it is on the disk when this returns."""
        place = self._journal.append({"key": key, **piece})
        self._journal.sync()
        self.pieces[key] = self._journal.read(place)

    def close(self) -> None:
        """End the work with the file, which stays."""
        self._journal.close()
