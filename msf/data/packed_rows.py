"""What `msf pack` noted beside a data set: the file and the group of every picture."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np

from msf.data.dataset import ImageDataset

IntArray = np.ndarray[Any, np.dtype[Any]]


def packed_rows(dataset: ImageDataset, split: str) -> list[dict[str, str]]:
    """Return the rows of a split's pictures in their order, as they were packed.

    Args:
        dataset: Read from a file.
        split: Name of one of its splits.

    Returns:
        Rows with `file` and `group`, among others; nothing where there are none, or those of other pictures.
    """
    if dataset.held_out is not None and split in dataset.held_out.rows:
        whole = packed_rows(dataset.held_out.origin, "train")
        return [whole[row] for row in dataset.held_out.rows[split].tolist()] if whole else []
    if dataset.path is None:
        return []
    try:
        report = json.loads(dataset.path.with_suffix(".json").read_bytes())
        if report["sha256"] != _origin(dataset).fingerprint:
            return []
        with dataset.path.with_suffix(".rows.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
            rows = [{"file": row["file"], "group": row["group"]} for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # a note of another program, or none
        return []
    return rows if len(rows) == len(dataset.split(split)) else []


def picture_groups(dataset: ImageDataset, split: str) -> IntArray | None:
    """Return the group of every picture of a split, such as its patient; a picture without one is one of its own.

    Args:
        dataset: Read from a file.
        split: Name of one of its splits.

    Returns:
        Whole numbers [N]; None where no groups are known.
    """
    names = [row["group"] for row in packed_rows(dataset, split)]
    if not any(names):
        return None
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name or f"\0{place}", len(numbers)) for place, name in enumerate(names)])


def _origin(dataset: ImageDataset) -> ImageDataset:
    return dataset if dataset.held_out is None else dataset.held_out.origin
