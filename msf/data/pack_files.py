"""The files of a packed data set: the archive, and a row per file of its source."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from msf.data.archive import CLASS_NAMES, SPLITS
from msf.data.listing import Listing
from msf.data.pack_report import PackedPictures
from msf.data.splits import IntArray
from msf.files.atomic import write_atomically
from msf.files.npy import NewArray, write_npz

_CHUNK_BYTES = 2**22


def write_archive_of(out: Path, listing: Listing, packed: PackedPictures, waiting: IO[bytes]) -> None:
    """Write the .npz, as a whole or not at all.

    Args:
        out: Where.
        listing: Names and classes.
        packed: Pictures that were read, with their splits.
        waiting: Their levels, one after another, each with its mask behind it where there are masks.
    """
    waiting.flush()
    shape = packed.shape if packed.shape[2] == 3 else packed.shape[:2]
    n_picture, n_mask = math.prod(shape), 0 if packed.masks is None else math.prod(shape[:2])
    labels = np.array(listing.labels, np.int64)[packed.numbers]
    arrays = {}
    for code, split in enumerate(SPLITS):
        rows = np.flatnonzero(packed.splits == code)
        if not len(rows):
            continue
        pictures = _Records(waiting, rows, shape, stride=n_picture + n_mask, offset=0)
        arrays[f"{split}_images"] = NewArray((len(rows), *shape), np.dtype(np.uint8), pictures.parts())
        arrays[f"{split}_labels"] = NewArray((len(rows), 1), np.dtype(np.int64), [labels[rows, None]])
        if packed.masks is not None:
            masks = _Records(waiting, rows, shape[:2], stride=n_picture + n_mask, offset=n_picture)
            table = packed.masks.table
            arrays[f"{split}_labels"] = NewArray(
                (len(rows), *shape[:2]), np.dtype(np.uint8), (table[part] for part in masks.parts())
            )
    names = np.array(listing.class_names)
    arrays[CLASS_NAMES] = NewArray(names.shape, names.dtype, [names])
    write_atomically(out, lambda path: write_npz(path, arrays))


@dataclass(frozen=True)
class _Records:
    """Arrays of one shape that wait in a file: some rows of them, each at `row * stride + offset` bytes."""

    waiting: IO[bytes]
    rows: IntArray
    shape: tuple[int, ...]
    stride: int
    offset: int

    def parts(self) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the rows, a few at a time."""
        n_bytes = math.prod(self.shape)
        per_part = max(1, _CHUNK_BYTES // n_bytes)
        for start in range(0, len(self.rows), per_part):
            chosen = self.rows[start : start + per_part].tolist()
            levels = np.empty((len(chosen), *self.shape), np.uint8)
            for place, row in zip(levels.reshape(len(chosen), -1), chosen, strict=True):
                self.waiting.seek(row * self.stride + self.offset)
                place[:] = np.frombuffer(self.waiting.read(n_bytes), np.uint8)
            yield levels


def write_rows_of(path: Path, listing: Listing, packed: PackedPictures) -> None:
    """Write a row per file of the source: split and number of its picture, class or mask, group, or what is wrong."""
    places = {}
    counts = [0] * len(SPLITS)
    for number, split in zip(packed.numbers.tolist(), packed.splits.tolist(), strict=True):
        places[number] = (SPLITS[split], counts[split])
        counts[split] += 1

    def write(target: Path) -> None:
        with target.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            own = ("file", "split", "index", "label", "class", "group", "error")
            if listing.source.has_masks:
                own = ("file", "split", "index", "label", "mask", "group", "error")
            writer.writerow(
                [*own, *(name if name not in own else f"{name} (source)" for name in listing.source.details)]
            )
            for number, name in enumerate(listing.files):
                label, group = listing.labels[number], listing.groups[number]
                of_class = ("", "") if label < 0 else (label, listing.class_names[label])
                if listing.source.has_masks:
                    of_class = ("", listing.masks[number])
                details = listing.details[number] if listing.details else ()
                writer.writerow(
                    [
                        name, *places.get(number, ("", "")), *of_class, "" if group < 0 else listing.group_names[group],
                        listing.errors.get(number, ""), *details,
                    ]
                )  # fmt: skip

    write_atomically(path, write)
