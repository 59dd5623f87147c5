"""A pool that is there: read from class folders or an archive, and some of its pictures written as another pool."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from msf.data import ImageDataset, load_dataset
from msf.files.atomic import write_atomically
from msf.files.damage import DAMAGE, first_line
from msf.pools.stores import NOTE, SPLITS, TABLE, is_archive, table_of, write_archive, write_rows

_NEEDED = ("file", "label", "label_name")


@dataclass(frozen=True, eq=False)
class Pool:
    """Pictures with labels, and what is noted about each.

    Args:
        place: Where it was read.
        images: uint8 [N, H, W, C].
        labels: int64 [N].
        rows: What is noted, one row per picture with `file`, `label` and `label_name`; of an archive also `split`.
    """

    place: Path
    images: Tensor
    labels: Tensor
    rows: list[dict[str, str]]

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    @property
    def digest(self) -> str:
        """SHA-256 of pictures and labels, in their order."""
        digest = hashlib.sha256(str(list(self.images.shape)).encode())
        digest.update(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()


def read_pool(place: Path) -> Pool:
    """Read a pool of `msf generate --per-class`, or any archive in MedMNIST layout.

    Args:
        place: A folder with its table, or an `.npz`; without a table beside it the archive's classes have no other
            names than it gives.

    Raises:
        FileNotFoundError: Nothing is there, or a folder without its table, as an unfinished one is.
        ValueError: A table or a picture that is damaged, or pictures of several shapes.
    """
    if not place.exists():
        raise FileNotFoundError(f"pool must be a folder or an .npz that exists; there is none at {str(place)!r}")
    if is_archive(place):
        return _read_archive(place)
    table = table_of(place)
    if not table.exists():
        unfinished = (
            f": it is unfinished, 'msf generate' completes it ({NOTE} says how)" if (place / NOTE).exists() else ""
        )
        raise FileNotFoundError(f"{str(place)!r} has no {TABLE}, which a pool has{unfinished}")
    rows = _read_table(table)
    return Pool(place, _read_pictures(place, rows), _labels(rows, table), rows)


def write_pool(pool: Pool, numbers: Sequence[int], place: Path, class_names: Sequence[str]) -> None:
    """Write some pictures of a pool as another one: an archive where the path ends in `.npz`, else class folders.

    Args:
        pool: Where they are taken from.
        numbers: Which, ascending; they keep their order, files and splits.
        place: A folder or file that is not there.
        class_names: Of all classes.

    Raises:
        ValueError: A split of an archive would be empty or lack a class in `train`; or a folder is asked of an archive
            or the other way round.
    """
    if is_archive(place) != is_archive(pool.place):
        raise ValueError(f"{str(place)!r} must be of the same kind as the pool, a folder or an .npz")
    if not is_archive(place):
        for number in numbers:
            file = place / pool.rows[number]["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, _as_image(pool.images[number]).save)
        write_rows(table_of(place), (pool.rows[number] for number in numbers), list(pool.rows[0]))
        return
    chosen = {split: [n for n in numbers if pool.rows[n]["split"] == split] for split in SPLITS}
    in_train = {int(pool.labels[n]) for n in chosen["train"]}
    if not all(chosen.values()) or len(in_train) < len(class_names):
        raise ValueError(
            f"what is kept must have pictures in every split and of every class in train; got "
            f"{', '.join(f'{len(own)} in {split}' for split, own in chosen.items())}, {len(in_train)} of "
            f"{len(class_names)} classes: keep more, or make a larger pool"
        )
    write_archive(place, pool.images.numpy(), pool.labels.tolist(), chosen, class_names)
    rows = (
        {**pool.rows[number], "file": f"{place.name}:{split}_images:{row}"}
        for split, own in chosen.items()
        for row, number in enumerate(own)
    )
    write_rows(table_of(place), rows, list(pool.rows[0]))


def _read_archive(place: Path) -> Pool:
    data = load_dataset(place)
    splits = [data.split(name) for name in SPLITS]
    labels = torch.cat([split.labels for split in splits])
    table = table_of(place)
    rows = _read_table(table) if table.exists() else _made_up_rows(place, data)
    if not torch.equal(_labels(rows, table), labels):
        raise ValueError(f"{str(table)!r} must have the pictures of {place.name!r} in their order; its labels differ")
    return Pool(place, torch.cat([split.images for split in splits]), labels, rows)


def _made_up_rows(place: Path, data: ImageDataset) -> list[dict[str, str]]:
    return [
        {
            "file": f"{place.name}:{split}_images:{row}",
            "label": str(label),
            "label_name": data.class_names[label],
            "split": split,
        }
        for split in SPLITS
        for row, label in enumerate(data.split(split).labels.tolist())
    ]


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} cannot be read as a table: {first_line(error)}") from error
    missing = [name for name in _NEEDED if not rows or rows[0].get(name) is None]
    if missing:
        raise ValueError(f"{str(path)!r} must have rows with the columns {', '.join(_NEEDED)}")
    return rows


def _labels(rows: Sequence[dict[str, str]], table: Path) -> Tensor:
    texts = [row["label"] or "" for row in rows]
    wrong = [text for text in texts if not (text.isdecimal() and len(text) < 5)]
    if wrong:
        raise ValueError(f"labels of {str(table)!r} must be numbers of classes; got {wrong[0]!r}")
    return torch.tensor([int(text) for text in texts])


def _read_pictures(place: Path, rows: Sequence[dict[str, str]]) -> Tensor:
    images: np.ndarray[Any, np.dtype[np.uint8]] | None = None
    root = place.resolve()
    for number, row in enumerate(rows):
        path = place / row["file"]
        if root not in path.resolve().parents:
            raise ValueError(f"files of a pool must lie in it; {str(table_of(place))!r} names {row['file']!r}")
        try:
            with Image.open(path) as image:
                picture = np.asarray(image)
        except FileNotFoundError:
            raise ValueError(f"{row['file']!r} of {str(place)!r} is missing: 'msf generate' makes it again") from None
        except DAMAGE as error:
            raise ValueError(f"{row['file']!r} of {str(place)!r} cannot be read: {first_line(error)}") from error
        picture = picture[..., None] if picture.ndim == 2 else picture
        if images is None:
            images = np.empty((len(rows), *picture.shape), np.uint8)
        if picture.shape != images.shape[1:] or picture.dtype != np.uint8 or picture.shape[-1] not in (1, 3):
            raise ValueError(
                f"pictures of a pool must be 8-bit grey or colour and of one size; {row['file']!r} is "
                f"{picture.dtype} {list(picture.shape)}"
            )
        images[number] = picture
    assert images is not None
    return torch.from_numpy(images)


def _as_image(picture: Tensor) -> Image.Image:
    values = picture.numpy()
    return Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values)
