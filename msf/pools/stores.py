"""Where a pool lies: class folders of PNGs, or an archive in MedMNIST layout. Both go on where they were left."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from msf.files.atomic import write_atomically
from msf.files.claim import LOCK_FILE
from msf.files.json_text import parse_json
from msf.files.npy import NewArray, write_npz
from msf.plain_values import told_apart
from msf.pools.plan import COLUMNS, PoolPlan

TABLE = "metadata.csv"
NOTE = "generated.json"
CLASS_NAMES = "class_names"
SPLITS = ("train", "val", "test")
_HELD_OUT = 10  # one of so many pictures of a class is for val, and one for test
_ROWS = 1024  # copied at once
_NO_NAME = re.compile(r"[^\w .,()+-]|^[.\s]|[.\s]$")

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class Store(Protocol):
    """Keeps the pictures of one pool.

    Attributes:
        folder: Holds the pool while it is made.
    """

    folder: Path

    def open(self) -> None:
        """Note what the pictures are made with, or find that those there are made with the same.

        Raises:
            ValueError: The place holds something else.
        """

    def missing(self) -> list[int]:
        """Return the numbers of the pictures that are not there."""

    def put(self, numbers: Sequence[int], pictures: Pixels) -> None:
        """Keep pictures, uint8 [n, H, W, C]; what is kept survives a kill."""

    def finish(self) -> None:
        """Write what a whole pool has beside its pictures; nothing where that is done."""


def store_for(place: Path, plan: PoolPlan) -> Store:
    """Return the store that a path asks for: an archive where it ends in `.npz`, else a folder."""
    return ArchiveStore(place, plan) if is_archive(place) else FolderStore(place, plan)


def is_archive(place: Path) -> bool:
    """Return whether a path names an archive."""
    return place.suffix.lower() == ".npz"


def table_of(place: Path) -> Path:
    """Return the table of a pool at a path."""
    return place.with_name(f"{place.stem}.{TABLE}") if is_archive(place) else place / TABLE


def working_folder(place: Path) -> Path:
    """Return the folder that holds a pool while it is made: that of an archive is hidden beside it."""
    return place.with_name(f".{place.name}.unfinished") if is_archive(place) else place


class FolderStore:
    """`<class>/<index>.png`, with `metadata.csv` when it is whole and `generated.json` from the start.

    Args:
        place: The folder.
        plan: Of the pool.
    """

    def __init__(self, place: Path, plan: PoolPlan) -> None:
        """Name the class folders."""
        self.folder = self.place = place
        self.plan = plan
        self._folders = class_folders(plan.class_names)

    def file(self, number: int) -> Path:
        """Return the file of a picture, relative to the folder."""
        return Path(self._folders[self.plan.label(number)], f"{self.plan.index(number):06d}.png")

    def open(self) -> None:
        """See `Store`."""
        _claim(self.place, self.plan)
        for label in self.plan.labels:
            (self.place / self._folders[label]).mkdir(exist_ok=True)

    def missing(self) -> list[int]:
        """See `Store`."""
        there = {label: frozenset(os.listdir(self.place / self._folders[label])) for label in self.plan.labels}
        return [n for n in range(len(self.plan)) if self.file(n).name not in there[self.plan.label(n)]]

    def put(self, numbers: Sequence[int], pictures: Pixels) -> None:
        """See `Store`."""
        for number, picture in zip(numbers, pictures, strict=True):
            image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
            write_atomically(self.place / self.file(number), image.save)

    def finish(self) -> None:
        """See `Store`."""
        table = table_of(self.place)
        if not table.exists():
            rows = (self.plan.row(number, self.file(number).as_posix()) for number in range(len(self.plan)))
            write_rows(table, rows, COLUMNS)


class ArchiveStore:
    """An `.npz` in MedMNIST layout, with a table `<name>.metadata.csv` beside it.

    Until it is whole the pictures lie in a hidden folder beside it, in one array that is mapped from the disk. The last
    tenth of every class is the split `test`, the tenth before it `val`.

    Args:
        place: The archive.
        plan: Of the pool.

    Raises:
        ValueError: Fewer than three pictures per class, or a class left out, which a data set cannot have.
    """

    def __init__(self, place: Path, plan: PoolPlan) -> None:
        """Check the plan."""
        if plan.per_class < len(SPLITS) or sorted(plan.labels) != list(range(len(plan.class_names))):
            raise ValueError(
                "an archive needs three or more pictures of every class, for its splits train, val and test; got "
                f"{plan.per_class} of {len(plan.labels)} classes of {len(plan.class_names)}: give a folder with --out"
            )
        self.place = place
        self.plan = plan
        self.folder = working_folder(place)
        self._images = self.folder / "images.bin"
        self._done = self.folder / "done.bin"

    def open(self) -> None:
        """See `Store`."""
        if self.place.exists() or table_of(self.place).exists():
            raise ValueError(f"{str(self.place)!r} is there already: give another file with --out, or remove it")
        _claim(self.folder, self.plan, ("images.bin", "done.bin"))
        for path, n_bytes in ((self._images, len(self.plan) * self._picture_bytes), (self._done, len(self.plan))):
            with path.open("ab") as file:
                file.truncate(n_bytes)

    @property
    def _shape(self) -> tuple[int, int, int]:
        assert self.plan.settings.size is not None
        return (self.plan.settings.size, self.plan.settings.size, self.plan.channels)

    @property
    def _picture_bytes(self) -> int:
        return int(np.prod(self._shape))

    def missing(self) -> list[int]:
        """See `Store`."""
        return np.flatnonzero(np.fromfile(self._done, np.uint8) == 0).tolist()

    def put(self, numbers: Sequence[int], pictures: Pixels) -> None:
        """See `Store`; the pictures are on the disk before they are marked."""
        for path, size, values in (
            (self._images, self._picture_bytes, [picture.tobytes() for picture in pictures]),
            (self._done, 1, [b"\1"] * len(numbers)),
        ):
            with path.open("r+b") as file:
                for number, value in zip(numbers, values, strict=True):
                    file.seek(number * size)
                    file.write(value)
                file.flush()
                os.fsync(file.fileno())

    def finish(self) -> None:
        """See `Store`."""
        images = np.memmap(self._images, np.uint8, "r", shape=(len(self.plan), *self._shape))
        numbers = {split: [n for n in range(len(self.plan)) if self._split(n) == split] for split in SPLITS}
        labels = [self.plan.label(number) for number in range(len(self.plan))]
        write_archive(self.place, images, labels, numbers, self.plan.class_names)
        rows = (
            {**self.plan.row(number, f"{self.place.name}:{split}_images:{place}"), "split": split}
            for split in SPLITS
            for place, number in enumerate(numbers[split])
        )
        write_rows(table_of(self.place), rows, (*COLUMNS, "split"))
        shutil.rmtree(self.folder)

    def _split(self, number: int) -> str:
        n_held_out = max(1, self.plan.per_class // _HELD_OUT)
        from_the_end = self.plan.per_class - 1 - self.plan.index(number)
        return "test" if from_the_end < n_held_out else "val" if from_the_end < 2 * n_held_out else "train"


def write_archive(
    place: Path, images: Pixels, labels: Sequence[int], numbers: dict[str, list[int]], class_names: Sequence[str]
) -> None:
    """Write an archive in MedMNIST layout, a part at a time.

    Args:
        place: The archive; as a whole or not at all.
        images: uint8 [N, H, W, C]; may be mapped from the disk.
        labels: Class of each picture.
        numbers: Pictures of each split, in their order.
        class_names: Of all classes.
    """
    shape = images.shape[1:3] if images.shape[3] == 1 else images.shape[1:]
    names = np.array(list(class_names))
    arrays = {CLASS_NAMES: NewArray(names.shape, names.dtype, [names])}
    for split, chosen in numbers.items():
        values = np.array([labels[n] for n in chosen], np.int64)[:, None]
        arrays[f"{split}_images"] = NewArray((len(chosen), *shape), images.dtype, _taken(images, chosen, shape))
        arrays[f"{split}_labels"] = NewArray(values.shape, values.dtype, [values])
    write_atomically(place, lambda path: write_npz(path, arrays))


def write_rows(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write a table as CSV, as a whole or not at all."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(columns))
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


def class_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return a folder name per class: the class's own where a file system takes it and no other class has it."""
    plain = [_NO_NAME.sub("_", name) or f"class {n}" for n, name in enumerate(names)]
    folded = [name.casefold() for name in plain]
    return told_apart(
        [f"class {n} {name}" if folded.count(name.casefold()) > 1 else name for n, name in enumerate(plain)]
    )


def _taken(images: Pixels, numbers: Sequence[int], shape: tuple[int, ...]) -> Iterator[Pixels]:
    for first in range(0, len(numbers), _ROWS):
        part = images[numbers[first : first + _ROWS]]
        yield part.reshape(len(part), *shape)


def _claim(folder: Path, plan: PoolPlan, own: Sequence[str] = ()) -> None:
    """Note what the pictures of a folder are made with, or find that it is the same."""
    note, path = json.loads(json.dumps(plan.note())), folder / NOTE
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():
        there = parse_json(path.read_bytes(), repr(str(path)), "what a pool was made with")
        old = there if isinstance(there, dict) else {}
        different = [name for name in note if old.get(name) != note[name]]
        if different:
            raise ValueError(
                f"{str(plan_place(folder))!r} holds a pool of another run (another {', '.join(different)}): give "
                "another --out, or remove it"
            )
        return
    others = sorted(set(os.listdir(folder)) - {LOCK_FILE, *own})
    if others:
        raise ValueError(
            f"{str(plan_place(folder))!r} must be a new or empty folder; it holds {others[0]!r}: give another --out"
        )
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8"))


def plan_place(folder: Path) -> Path:
    """Return the place that a working folder belongs to."""
    hidden = re.fullmatch(r"\.(.+)\.unfinished", folder.name)
    return folder.with_name(hidden[1]) if hidden else folder
