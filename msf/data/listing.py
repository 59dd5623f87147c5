"""All pictures of a source in compact form, with what can be checked before one of them is decoded."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from msf.data.archive import SPLITS
from msf.data.sources import Source
from msf.data.splits import NOT_SAID, TRAIN, IntArray, groups_in_two_splits
from msf.plain_values import shown, shown_names

_N_LISTED = 8


@dataclass
class Listing:
    """What a source says of its pictures; lists are in its order, and every file has a number.

    Args:
        source: Where it comes from.
        class_names: Classes by number.
        files: Paths.
        labels: Classes; -1 where the source says none.
        splits: 0, 1, 2 as in `msf.data.splits`, or -1.
        groups: Numbers of groups, or -1.
        group_names: Names of the groups, by number.
        details: Further columns of a table, per file; empty where there are none.
        errors: For files that will not be read: what is wrong.
        masks: Of the files, where pixels have classes; empty for a file without one. `labels` are then 0, and
            `class_names` may be unknown, and empty, until the masks are read.
    """

    source: Source
    class_names: tuple[str, ...] = ()
    files: list[str] = field(default_factory=list)
    labels: array[int] = field(default_factory=lambda: array("i"))
    splits: array[int] = field(default_factory=lambda: array("b"))
    groups: array[int] = field(default_factory=lambda: array("i"))
    group_names: list[str] = field(default_factory=list)
    details: list[tuple[str, ...]] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    masks: list[str] = field(default_factory=list)


def read_listing(
    source: Source,
    class_names: Sequence[str] | None = None,
    *,
    known_names: Sequence[str] = (),
    only_test: bool = False,
) -> Listing:
    """Return all pictures of a source.

    Args:
        source: Folder or table.
        class_names: Names that take the place of the source's: all of them in their order where the source has these
            names (in any case) or some of them, else new names for the source's, which are sorted; numbers of classes
            count from 0.
        known_names: Taken for `class_names` where that is not given and the source has no other names than these.
        only_test: All pictures are for testing; classes may then be missing.

    Raises:
        ValueError: No picture; fewer than two classes; two names for one class; class names that do not fit; splits for
            some pictures only; a group in two splits; a class without a picture for training.
    """
    listing, raw, given = _collect(source)
    place = str(source.path)
    if not listing.files:
        raise ValueError(f"{place!r} holds no pictures")
    if len(listing.errors) == len(listing.files):
        raise ValueError(f"none of {len(listing.files)} pictures can be taken; {listing.errors[0]}")
    if (
        class_names is None
        and known_names
        and {_folded(name) for name in raw} <= {_folded(name) for name in known_names}
    ):
        class_names = known_names
    if source.has_masks:
        listing.class_names = tuple(class_names or known_names)
        _check_names(listing.class_names)
        listing.labels = array("i", bytes(array("i").itemsize * len(given)))
    else:
        listing.class_names, codes = name_classes(raw, class_names, place, needs_two=not only_test)
        listing.labels = array("i", [codes[label] if label >= 0 else NOT_SAID for label in given])
    if only_test:
        return listing
    splits, usable = np.array(listing.splits), _usable(listing)
    if source.has_splits:
        unsaid = np.flatnonzero(usable & (splits == NOT_SAID))
        if len(unsaid):
            raise ValueError(
                f"{place!r} must name a split for every picture, or for none; it has none for "
                f"{len(unsaid)}, such as {listing.files[unsaid[0]]!r}"
            )
        _check_given(listing, splits[usable], usable)
    return listing


def name_classes(
    found: Sequence[str], wanted: Sequence[str] | None, place: str, *, needs_two: bool = True
) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the classes in their order, and for each found name the number of its class.

    Args:
        found: Names that the source has, in any order.
        wanted: What the caller calls them; None: as they are.
        place: The source, for messages.
        needs_two: Whether fewer than two classes are refused.

    Raises:
        ValueError: See `read_listing`.
    """
    folded: dict[str, str] = {}
    for name in found:
        other = folded.setdefault(_folded(name), name)
        if other != name:
            raise ValueError(
                f"{place!r} must have one name per class; it has {other!r} and {name!r}, which differ in case or spaces"
            )
    is_numbered = all(name.isascii() and name.isdecimal() for name in found)
    ordered = sorted(found, key=(lambda name: (int(name), name)) if is_numbered else (lambda name: (0, name)))
    names = tuple(ordered if wanted is None else wanted)
    if needs_two and len(names) < 2:
        raise ValueError(f"{place!r} must have two classes or more; it has {shown_names(names, 1) or 'none'}")
    if wanted is None:
        return names, [names.index(name) for name in found]
    known = _check_names(names)
    matching = [_folded(name) in known for name in found]
    if all(matching):
        return names, [known.index(_folded(name)) for name in found]
    if is_numbered and not any(matching) and max(map(int, found)) < len(names):
        return names, [int(name) for name in found]
    if not any(matching) and len(names) == len(found):
        return names, [ordered.index(name) for name in found]
    raise ValueError(
        f"class-names must hold all names of {place!r}, or none of them and as many new ones; it has "
        f"{shown_names(ordered, _N_LISTED)}, got {shown_names(names, _N_LISTED)}"
    )


def _check_names(names: Sequence[str]) -> list[str]:
    """Return names of classes without case and spaces; refuse such as are not different."""
    known = [_folded(name) for name in names]
    if "" in known or len(set(known)) < len(known):
        raise ValueError(f"class-names must be different names; got {shown(list(names))}")
    return known


def _collect(source: Source) -> tuple[Listing, list[str], array[int]]:
    """Return a listing without classes, the names of classes, and the number of each picture's name."""
    listing = Listing(source)
    labels: dict[str, int] = {}
    groups: dict[str, int] = {}
    given = array("i")
    for number, entry in enumerate(source.entries()):
        listing.files.append(entry.file)
        given.append(NOT_SAID if entry.label is None else labels.setdefault(entry.label, len(labels)))
        listing.splits.append(NOT_SAID if entry.split is None else SPLITS.index(entry.split))
        listing.groups.append(NOT_SAID if entry.group is None else groups.setdefault(entry.group, len(groups)))
        if entry.error is not None:
            listing.errors[number] = entry.error
        if source.has_masks:
            listing.masks.append(entry.mask or "")
        if source.details:
            listing.details.append(entry.details)
    listing.group_names = list(groups)
    return listing, list(labels), given


def _usable(listing: Listing) -> IntArray:
    usable = np.ones(len(listing.files), bool)
    usable[list(listing.errors)] = False
    return usable


def _check_given(listing: Listing, splits: IntArray, usable: IntArray) -> None:
    place = str(listing.source.path)
    groups, labels = np.array(listing.groups)[usable], np.array(listing.labels)[usable]
    torn = groups_in_two_splits(groups, splits)
    if len(torn):
        name = listing.group_names[torn[0]]
        where = " and ".join(SPLITS[split] for split in np.unique(splits[groups == torn[0]]))
        raise ValueError(
            f"{place!r} must have every group in one split; {len(torn)} are in several, such as "
            f"{shown(name)} in {where}"
        )
    if (splits == TRAIN).any() and not listing.source.has_masks:
        absent = np.flatnonzero(np.bincount(labels[splits == TRAIN], minlength=len(listing.class_names)) == 0)
        if len(absent):
            name = listing.class_names[absent[0]]
            raise ValueError(f"{place!r} must have every class in its split train; {shown(name)} is missing")


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()
