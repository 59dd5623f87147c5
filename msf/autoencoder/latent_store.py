"""The files of a latent cache: what they are of, which parts are done, and whether those are intact.

A folder holds `mean.npy` and, for a sampled posterior, `std.npy`, float32 [V, N, L, h, w], and `meta.json`: what was
encoded by what, and one checksum per chunk, null until the chunk is done. Latents reach the disk before the checksums
that vouch for them, so a kill at any moment costs what was encoded since `meta.json` was last replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from msf.files.atomic import write_atomically
from msf.files.json_text import parse_json
from msf.files.npy import map_npy
from msf.interruption import undisturbed
from msf.plain_values import shown

FORMAT = 1
META_FILE = "meta.json"
SAVE_SECONDS = 10.0  # between two replacements of the meta file: the work that a kill can cost

_log = logging.getLogger(__name__)

Array = np.memmap[Any, np.dtype[np.float32]]


class Chunk(NamedTuple):
    """Some neighbouring rows of one variant: what is encoded, written and vouched for at once."""

    number: int
    variant: int
    rows: slice


class LatentStore:
    """The files of one cache. One process at a time may call its methods; the caller sees to that.

    Args:
        folder: Holds the files; exists when a method is called.
        identity: What is encoded by what: plain values that files must agree with to be used.
        shape: [V, N, L, h, w] of the arrays.
        chunk_rows: Pictures that are encoded, written and vouched for at once.
        has_std: Whether standard deviations are kept too.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        shape: Sequence[int],
        chunk_rows: int,
        has_std: bool,
    ) -> None:
        """Lay out the chunks; nothing is read or written yet."""
        self.folder = folder
        self.shape = tuple(shape)
        self.identity = {
            "format": FORMAT,
            **identity,
            "shape": list(shape),
            "dtype": "float32",
            "chunk_rows": chunk_rows,
        }
        self._paths = [folder / name for name in ("mean.npy", "std.npy")[: 2 if has_std else 1]]
        n_variants, n_rows = self.shape[:2]
        places = [(variant, first) for variant in range(n_variants) for first in range(0, n_rows, chunk_rows)]
        self._chunks = [
            Chunk(number, variant, slice(first, min(first + chunk_rows, n_rows)))
            for number, (variant, first) in enumerate(places)
        ]
        self._checksums: list[str | None] = [None] * len(self._chunks)

    def arrays(self) -> tuple[Array, Array | None]:
        """Return the means and the standard deviations (None where they are not kept), mapped for reading."""
        mapped = self._checked_arrays()
        return mapped[0], mapped[1] if len(mapped) == 2 else None

    def restore(self) -> None:
        """Take over the chunks on the disk that are right; lay out new files where they cannot be used."""
        try:
            checksums = self._read_meta()
            arrays = self._checked_arrays()
        except FileNotFoundError:
            self._clear()
            return
        except ValueError as error:
            _log.warning("latents in %s are encoded anew: %s", self.folder, error)
            self._clear()
            return
        n_damaged = 0
        for chunk, recorded in zip(self._chunks, checksums, strict=True):
            parts = [array[chunk.variant, chunk.rows] for array in arrays]
            if recorded is not None and recorded == _checksum(parts) and all(np.isfinite(part).all() for part in parts):
                self._checksums[chunk.number] = recorded
            elif recorded is not None:
                n_damaged += 1
        if n_damaged:
            _log.warning("%d of %d chunks in %s are damaged and encoded anew", n_damaged, len(checksums), self.folder)

    def missing(self) -> list[Chunk]:
        """Return the chunks that are to be encoded."""
        return [chunk for chunk in self._chunks if self._checksums[chunk.number] is None]

    @contextmanager
    def writing(self) -> Iterator[Callable[[Chunk, Sequence[Tensor]], None]]:
        """Open the files for writing; what was written stays, whatever ends the block.

        Yields:
            `put(chunk, latents)`: writes a chunk's means and standard deviations, [rows, L, h, w] each.
        """
        offsets = [array.offset for array in self.arrays() if array is not None]
        row_bytes = 4 * math.prod(self.shape[2:])
        with ExitStack() as stack:
            # Without a buffer, whose rest a full disk would refuse a second time, when the file is closed.
            files = [stack.enter_context(path.open("r+b", buffering=0)) for path in self._paths]
            saved = time.monotonic()

            def put(chunk: Chunk, latents: Sequence[Tensor]) -> None:
                nonlocal saved
                kept = [part.numpy() for part in latents[: len(files)]]
                for file, offset, part in zip(files, offsets, kept, strict=True):
                    # Not through a map, where a full disk is a signal that kills instead of an error with a name.
                    file.seek(offset + (chunk.variant * self.shape[1] + chunk.rows.start) * row_bytes)
                    _write_all(file, part.tobytes())
                self._checksums[chunk.number] = _checksum(kept)
                if time.monotonic() - saved > SAVE_SECONDS:
                    self._save(files)
                    saved = time.monotonic()

            try:
                yield put
            finally:
                with undisturbed(is_last=True):
                    self._save(files)

    def _save(self, files: Sequence[FileIO]) -> None:
        for file in files:
            os.fsync(file.fileno())
        n_done = len(self._checksums) - self._checksums.count(None)
        meta = {**self.identity, "n_done": n_done, "checksums": self._checksums}
        write_atomically(self.folder / META_FILE, lambda path: path.write_text(json.dumps(meta, indent=1) + "\n"))

    def _clear(self) -> None:
        (self.folder / META_FILE).unlink(missing_ok=True)
        for path in self._paths:
            # Another process may still read the file that was here.
            path.unlink(missing_ok=True)
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=self.shape)

    def _read_meta(self) -> list[str | None]:
        """Return the checksums; raise ValueError where the files are of something else."""
        meta = parse_json((self.folder / META_FILE).read_bytes(), META_FILE, "the description of a cache in JSON")
        if not isinstance(meta, dict) or not isinstance(meta.get("checksums"), list):
            raise ValueError(f"{META_FILE} is damaged or of another version")
        found = {name: meta.get(name) for name in self.identity}
        checksums: list[Any] = meta["checksums"]
        for name, value in self.identity.items():
            if found[name] != value:
                raise ValueError(f"{name} was {shown(found[name])}, is now {shown(value)}")
        if len(checksums) != len(self._chunks):
            raise ValueError(f"{META_FILE} must have {len(self._chunks)} checksums; it has {len(checksums)}")
        if not all(isinstance(checksum, str | None) for checksum in checksums):
            raise ValueError(f"{META_FILE} must have texts as checksums")
        return checksums

    def _checked_arrays(self) -> list[Array]:
        arrays = []
        for path in self._paths:
            try:
                array = map_npy(path)
            except ValueError as error:  # truncated, or not an array
                raise ValueError(f"{path.name} is damaged ({error})") from error
            if array.shape != self.shape or array.dtype != np.float32:
                raise ValueError(
                    f"{path.name} must be float32 {list(self.shape)}; got {array.dtype} {list(array.shape)}"
                )
            arrays.append(array)
        return arrays


def _write_all(file: FileIO, content: bytes) -> None:
    """Write without a buffer, which may take several calls, the last of which says why there is no more room."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _checksum(parts: Iterable[np.ndarray[Any, Any]]) -> str:
    """Return a checksum of arrays, in their order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
