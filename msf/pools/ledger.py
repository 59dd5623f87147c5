"""What of a long study is done: a line per finished piece, kept through a kill and never computed twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msf.files.json_text import parse_json


class Ledger:
    """A file with a line on what it belongs to, and a line per finished piece.

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
        self.path = path
        self.pieces: dict[str, dict[str, Any]] = {}
        wanted = json.loads(json.dumps(made_with))
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if not whole:
            path.write_bytes(json.dumps(wanted).encode() + b"\n")
            return
        where = repr(str(path))
        there, *pieces = [parse_json(line, where, "a line per finished piece of a study") for line in whole]
        if there != wanted:
            old = there if isinstance(there, dict) else {}
            different = [name for name in wanted if old.get(name) != wanted[name]]
            raise ValueError(f"{where} is of another study (another {', '.join(different)}): give another --out")
        for piece in pieces:
            if not isinstance(piece, dict) or not isinstance(piece.get("key"), str):
                raise ValueError(f"{where} is damaged: a line has no key; remove it to start anew")
            self.pieces[piece["key"]] = piece
        if len(whole) < len(lines):
            with path.open("r+b") as file:
                file.truncate(sum(map(len, whole)))

    def add(self, key: str, piece: Mapping[str, Any]) -> None:
        """Keep a finished piece; it is on the disk when this returns."""
        row = {"key": key, **piece}
        with self.path.open("ab") as file:
            file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.pieces[key] = json.loads(json.dumps(row))
