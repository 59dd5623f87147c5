"""Rows of finished pictures on the disk, one line each, so that memory stays small and nothing is computed twice."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from msf.files.json_text import parse_json

_LONGEST = 2**24


class Journal:
    """A file whose first line says what its rows were made with; a row is written once and read where it lies.

    Args:
        path: The file; made when the first row comes. None: one without a name, which ends with the process.
        made_with: What rows depend on, JSON-ready; rows made with something else are never mixed with these.
        resume: Go on with the file that an interrupted run left, if there is one.

    Raises:
        ValueError: The file is there and `resume` is not asked for; or it was made with something else, or is no such
            file.
    """

    def __init__(self, path: Path | None, made_with: Mapping[str, Any], *, resume: bool) -> None:
        """Look at what is there; nothing is written yet."""
        self.path = path
        self._made_with = json.loads(json.dumps(made_with))
        self._file: IO[bytes] | None = None
        self._end = 0
        if path is None or not path.exists():
            return
        header = _line(self._made_with)
        if path.stat().st_size < len(header) and header.startswith(path.read_bytes()):
            path.unlink()  # of a process that was killed before its first row
            return
        if not resume:
            raise ValueError(
                f"{str(path)!r} holds the rows of an interrupted run: go on with --resume, or remove it to start anew"
            )
        with path.open("rb") as file:
            first = file.readline(_LONGEST)
        there = parse_json(first, repr(str(path)), "what its rows were made with") if first.endswith(b"\n") else None
        if there != self._made_with:
            there = there if isinstance(there, dict) else {}
            names = [name for name, value in self._made_with.items() if there.get(name) != value]
            raise ValueError(
                f"{str(path)!r} holds rows that were made with something else "
                f"({', '.join(names) or 'an unknown field'}): give the same, or remove it to start anew"
            )
        self._file = path.open("r+b")
        self._end = len(first)

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the rows that are there, with their places; a line that a killed process left half is cut off."""
        if self._file is None:
            return
        self._file.seek(self._end)
        while line := self._file.readline(_LONGEST):
            if not line.endswith(b"\n"):
                break
            try:  # names of files may be no Unicode, which other JSON is not allowed
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("no object")
            except (ValueError, RecursionError) as error:
                self.close()
                raise ValueError(
                    f"{str(self.path)!r} is damaged at byte {self._end} ({error}): remove it to start anew"
                ) from error
            yield self._end, row
            self._end += len(line)
            self._file.seek(self._end)
        self._file.truncate(self._end)

    def append(self, row: Mapping[str, Any]) -> int:
        """Write a row; return its place.

        Raises:
            OSError: The disk is full. The rows before stay.
        """
        if self._file is None:
            self._file = tempfile.TemporaryFile() if self.path is None else self.path.open("x+b")  # noqa: SIM115
            self._end = self._write(self._made_with)
        place = self._end
        self._end += self._write(row)
        return place

    def sync(self) -> None:
        """See to it that all rows survive the end of the process, and of the machine."""
        if self._file is not None:
            self._file.flush()
            if self.path is not None:
                os.fsync(self._file.fileno())

    def read(self, place: int) -> dict[str, Any]:
        """Return the row at a place."""
        assert self._file is not None
        self._file.seek(place)
        row: dict[str, Any] = json.loads(self._file.readline())
        return row

    def close(self, *, remove: bool = False) -> None:
        """End the work with it; the file goes if its rows are elsewhere."""
        if self._file is not None:
            self._file.close()
            if remove and self.path is not None:
                self.path.unlink(missing_ok=True)
        self._file = None

    def _write(self, content: Mapping[str, Any]) -> int:
        assert self._file is not None
        line = _line(content)
        self._file.seek(self._end)
        self._file.write(line)
        return len(line)


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, allow_nan=False).encode() + b"\n"
