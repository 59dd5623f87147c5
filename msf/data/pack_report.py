"""What a person should know of a data set before training on it: counts, what was skipped, doubles, conflicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from msf.data.archive import SPLITS
from msf.data.listing import Listing
from msf.data.similar import NEAR_BITS, near_pairs
from msf.data.splits import NOT_SAID, TRAIN, IntArray
from msf.versions import versions

REPORT_FORMAT = "msf-pack/1"
MOST_LISTED = 1000  # of one kind; all files are in the rows
_MOST_SIZES = 50


@dataclass(frozen=True)
class PackedMasks:
    """What is known of the masks of the pictures that were read, in their order.

    Args:
        table: Class of each value of the masks; uint8 [256].
        presence: Whether (0 or 1) each class occurs in each mask; int64 [n, n_classes].
        digests: A number per mask that equal masks share; uint64 [n].
    """

    table: np.ndarray[tuple[int], np.dtype[np.uint8]]
    presence: IntArray
    digests: np.ndarray[tuple[int], np.dtype[np.uint64]]


@dataclass
class PackedPictures:
    """What is known of the pictures that were read, in their order.

    Args:
        numbers: Of the files in the listing; int64 [n].
        splits: 0, 1, 2 as in `msf.data.splits`; int8 [n].
        digests: Of each picture's values at its own size; uint64 [n, 2].
        hashes: Perceptual hash of each picture; uint64 [n, 4].
        is_constant: Whether all its values are the same; bool [n].
        shape: Of the pictures in the data set, [S, S, C].
        sizes: Height and width of the files' pictures, with their number.
        modes: Grey or colour, and depth, with their number.
        masks: Where pixels have classes.
    """

    numbers: IntArray
    splits: IntArray
    digests: np.ndarray[Any, np.dtype[np.uint64]]
    hashes: np.ndarray[Any, np.dtype[np.uint64]]
    is_constant: np.ndarray[Any, np.dtype[np.bool_]]
    shape: tuple[int, int, int]
    sizes: Counter[tuple[int, int]]
    modes: Counter[str]
    masks: PackedMasks | None = None

    def counts(self, labels: IntArray, splits: IntArray, n_classes: int) -> IntArray:
        """Return the pictures of each class, or that show it, in each split: int64 [n_classes, 3]."""
        counts = np.zeros((n_classes, len(SPLITS)), np.int64)
        if self.masks is None:
            np.add.at(counts, (labels, splits), 1)
        else:
            np.add.at(counts.T, splits, self.masks.presence)
        return counts


def make_report(listing: Listing, packed: PackedPictures, made: Sequence[str]) -> dict[str, Any]:
    """Return the report of a data set, JSON-ready.

    Args:
        listing: The source, with the errors of its files.
        packed: The pictures that were read.
        made: Splits that were made, and not named by the source.
    """
    labels = np.array(listing.labels, np.int64)[packed.numbers]
    counts = packed.counts(labels, packed.splits, len(listing.class_names))
    n_in = dict(zip(SPLITS, np.bincount(packed.splits, minlength=len(SPLITS)).tolist(), strict=True))
    answers = labels if packed.masks is None else packed.masks.digests
    doubles = list(_doubles(packed.digests))
    crossing = [rows for rows in doubles if len(np.unique(packed.splits[rows])) > 1]
    conflicts = [rows for rows in doubles if len(np.unique(answers[rows])) > 1]
    near = list(_near(packed))
    constant = np.flatnonzero(packed.is_constant)

    def named(rows: IntArray) -> list[dict[str, str]]:
        return [
            {
                "file": listing.files[packed.numbers[row]],
                "split": SPLITS[packed.splits[row]],
                "class": listing.class_names[labels[row]] if packed.masks is None else "",
            }
            for row in rows.tolist()
        ]

    groups = np.array(listing.groups)[packed.numbers]
    return {
        "format": REPORT_FORMAT,
        "source": str(listing.source.path),
        "class_names": list(listing.class_names),
        "picture_shape": list(packed.shape),
        "n_files": len(listing.files),
        "n_packed": len(packed.numbers),
        "n_skipped": len(listing.errors),
        "n_in_split": n_in,
        "splits_made": list(made),
        "n_groups": len(np.unique(groups[groups != NOT_SAID])),
        "n_without_group": int((groups == NOT_SAID).sum()) if listing.source.has_groups else 0,
        "counts": [
            {"class": name, **dict(zip(SPLITS, row, strict=True))}
            for name, row in zip(listing.class_names, counts.tolist(), strict=True)
        ],
        "sizes": [
            {"height": height, "width": width, "n": n} for (height, width), n in packed.sizes.most_common(_MOST_SIZES)
        ],
        "n_sizes": len(packed.sizes),
        "modes": [{"mode": mode, "n": n} for mode, n in packed.modes.most_common()],
        "skipped": [
            {"file": listing.files[number], "reason": listing.errors[number]}
            for number in sorted(listing.errors)[:MOST_LISTED]
        ],
        "not_pictures": [{"kind": kind, "n": n} for kind, n in sorted(listing.source.skipped.items())],
        "exact_duplicates": {
            "n_sets": len(doubles),
            "n_sets_across_splits": len(crossing),
            "across_splits": [named(rows) for rows in crossing[:MOST_LISTED]],
        },
        "near_duplicates_across_splits": {
            "most_bits": NEAR_BITS,
            "n_pairs": len(near),
            "pairs": [
                {"bits": bits, "pictures": named(np.array([first, second]))}
                for first, second, bits in near[:MOST_LISTED]
            ],
        },
        "label_conflicts": {"n_sets": len(conflicts), "sets": [named(rows) for rows in conflicts[:MOST_LISTED]]},
        "constant": {"n": len(constant), "pictures": named(constant[:MOST_LISTED])},
        "notes": list(_notes(listing, counts, n_in, doubles=(len(crossing), len(near), len(conflicts)))),
        "versions": versions(),
    }


def _doubles(digests: np.ndarray[Any, np.dtype[np.uint64]]) -> Iterator[IntArray]:
    """Yield the rows of pictures that are equal, two or more at a time."""
    _, inverse, counts = np.unique(digests, axis=0, return_inverse=True, return_counts=True)
    inverse = inverse.ravel()
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(counts)
    for end, n in zip(ends.tolist(), counts.tolist(), strict=True):
        if n > 1:
            yield order[end - n : end]


def _near(packed: PackedPictures) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of pictures in different splits that are nearly, and not quite, the same."""
    varied = ~packed.is_constant  # all of whose hashes are the same
    for first in range(len(SPLITS)):
        ours = np.flatnonzero(varied & (packed.splits == first))
        theirs = np.flatnonzero(varied & (packed.splits > first))
        for row, column, bits in near_pairs(packed.hashes[ours], packed.hashes[theirs]):
            a, b = int(ours[row]), int(theirs[column])
            if (packed.digests[a] != packed.digests[b]).any():
                yield a, b, bits


def _notes(listing: Listing, counts: IntArray, n_in: dict[str, int], *, doubles: tuple[int, int, int]) -> Iterator[str]:
    n_crossing, n_near, n_conflicts = doubles
    for code, split in enumerate(SPLITS):
        absent = [name for name, n in zip(listing.class_names, counts[:, code], strict=True) if n == 0]
        if n_in[split] and absent:
            yield f"split {split} has no picture of {', '.join(absent)}"
        elif not n_in[split] and n_in[SPLITS[TRAIN]]:
            yield f"split {split} is empty"
    if n_crossing:
        yield f"{n_crossing} sets of equal pictures lie in several splits: figures on them are too good"
    if n_near:
        yield f"{n_near} pairs of nearly equal pictures lie in different splits"
    if n_conflicts:
        yield f"{n_conflicts} sets of equal pictures have several labels"
