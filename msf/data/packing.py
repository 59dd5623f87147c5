"""Pictures of a source, made one data set: read one by one, divided into splits, written with a report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from msf.data.archive import SPLITS
from msf.data.dicom import is_dicom
from msf.data.images import HALF_RANGE, prepare_images
from msf.data.listing import Listing, read_listing
from msf.data.masks import MaskReader
from msf.data.pack_files import write_archive_of, write_rows_of
from msf.data.pack_report import PackedMasks, PackedPictures, make_report
from msf.data.pictures import Reading, made_square, read_image
from msf.data.similar import perceptual_hash
from msf.data.sources import open_source
from msf.data.splits import NOT_SAID, TEST, TRAIN, IntArray, check_shares, groups_in_two_splits, make_splits
from msf.data.table import MEDMNIST_SIZES
from msf.files.atomic import write_atomically

Mode = Literal["auto", "grey", "colour"]
Progress = Callable[[int, int], None]
_CHANNELS = {"grey": 1, "colour": 3}
_SIZES = ", ".join(map(str, MEDMNIST_SIZES))
_MOST_PIXELS = 2**14


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """How a data set is made of pictures.

    Args:
        size: Height and width of the pictures in it; None: theirs, where all have the same.
        mode: `grey` or `colour`; `auto`: what all pictures are, where all are the same.
        reading: How files are read and made square.
        val: Share for choosing, where the source names no such split.
        test: Share for testing, likewise.
        only_test: All pictures are for testing.
        seed: Of the splits.
        class_names: See `read_listing`.
        known_names: Likewise.
        columns: Names of a table's columns; see `open_source`.
        masks: Folder of the masks of a folder of pictures, whose pixels then have the classes; see `open_source`.
        strict: A file that cannot be read ends the work.

    Raises:
        ValueError: A number or name out of range.
    """

    size: int | None = None
    mode: Mode = "auto"
    reading: Reading = field(default_factory=Reading)
    val: float = 0.15
    test: float = 0.15
    only_test: bool = False
    seed: int = 0
    class_names: tuple[str, ...] | None = None
    known_names: tuple[str, ...] = ()
    columns: Mapping[str, str | None] = field(default_factory=dict)
    masks: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a source."""
        check_shares(self.val, self.test)
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}; got {self.mode!r}")
        if self.size is not None and not 1 <= self.size <= _MOST_PIXELS:
            raise ValueError(f"size must be in [1, {_MOST_PIXELS}]; got {self.size}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32); got {self.seed}")


def pack_pictures(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: PackSettings | None = None,
    *,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make an .npz in MedMNIST layout of a folder or a table of pictures.

    Beside it are written NAME.rows.csv, with a row per file of the source (split and number of the picture in it,
    class, group, further columns; or what is wrong with the file), and NAME.json, the report. Memory does not grow with
    the pictures, of which one is decoded at a time: they wait on the disk, in the folder of `out`.

    Args:
        source: See `msf.data.sources.open_source`.
        out: File to write or replace.
        settings: How; None: `PackSettings()`.
        progress: Called as `progress(n_done, n_total)`, in files.

    Returns:
        The report: counts, what was skipped and why, duplicates, conflicts; see docs/schemas/pack.schema.json.

    Raises:
        FileNotFoundError: There is no such source.
        ValueError: See `open_source`, `read_listing` and `make_splits`; pictures of several sizes without a `size`,
            grey and colour ones without a `mode`; no picture that can be read; with `strict`, one that cannot be read.
        OSError: The disk is full or not writable.
    """
    settings = PackSettings() if settings is None else settings
    listing = _listing(source, settings)
    return pack_listing(listing, Path(out), settings, progress)


def _listing(source: str | os.PathLike[str], settings: PackSettings) -> Listing:
    opened = open_source(source, settings.columns, masks=settings.masks)
    return read_listing(opened, settings.class_names, known_names=settings.known_names, only_test=settings.only_test)


def pack_listing(
    listing: Listing, out: Path, settings: PackSettings, progress: Progress | None = None
) -> dict[str, Any]:
    """Do the work of `pack_pictures` for a source that was read."""
    if out.suffix != ".npz":
        raise ValueError(f"out must be the path of an .npz; got {str(out)!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder of {str(out)!r} does not exist")
    if settings.strict and listing.errors:
        raise ValueError(listing.errors[min(listing.errors)])
    with tempfile.TemporaryFile(dir=out.parent) as waiting:
        reader = _Reader(listing, settings, waiting)
        for number in range(len(listing.files)):
            reader.read(number)
            if progress is not None:
                progress(number + 1, len(listing.files))
        packed = reader.result()
        packed.splits, made = _splits_of(listing, packed, settings)
        report = make_report(listing, packed, made)
        write_rows_of(out.with_suffix(".rows.csv"), listing, packed)
        write_archive_of(out, listing, packed, waiting)
    with out.open("rb") as file:
        report = {"file": out.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest(), **report}
    report["settings"] = _plain_settings(settings)
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=True) + "\n"
    write_atomically(out.with_suffix(".json"), lambda path: path.write_text(text, encoding="utf-8"))
    return report


def pack_into(
    folder: Path, source: str | os.PathLike[str], settings: PackSettings, progress: Progress | None = None
) -> tuple[Path, dict[str, Any]]:
    """Make a data set in a cache, or find the one that was made of the same files with the same settings.

    Args:
        folder: The cache; made if it is missing. What lies there may be deleted at any time.
        source: As for `pack_pictures`.
        settings: Likewise.
        progress: Likewise.

    Returns:
        Path of the .npz, and its report.

    Raises:
        As `pack_pictures`.
    """
    listing = _listing(source, settings)
    name = Path(os.path.abspath(Path(source).expanduser())).stem
    out = folder / f"{name}-{_key(listing, settings)}.npz"
    if out.is_file() and out.with_suffix(".json").is_file():
        report: dict[str, Any] = json.loads(out.with_suffix(".json").read_bytes())
        return out, report
    folder.mkdir(parents=True, exist_ok=True)
    return out, pack_listing(listing, out, settings, progress)


def _key(listing: Listing, settings: PackSettings) -> str:
    """Return a digest of what a data set is made of: names, sizes and times of the files, classes, settings."""
    digest = hashlib.blake2b(json.dumps(_plain_settings(settings), sort_keys=True).encode(), digest_size=8)
    for values in (listing.labels, listing.splits, listing.groups):
        digest.update(values.tobytes())
    digest.update(json.dumps([listing.class_names, listing.group_names, listing.details]).encode())
    for number, file in enumerate(listing.files):
        digest.update(f"{_stamp(file)} {listing.errors.get(number)!r}".encode())
    for mask in listing.masks:
        digest.update(_stamp(mask).encode())
    return digest.hexdigest()


def _stamp(file: str) -> str:
    try:
        found = os.stat(file)
        stamp = f"{found.st_size} {found.st_mtime_ns}"
    except (OSError, ValueError):  # the second: a name with a NUL, which a table may hold
        stamp = "none"
    return f"{os.path.abspath(file)!r} {stamp}"


def _plain_settings(settings: PackSettings) -> dict[str, Any]:
    return {
        name: sorted(value.items()) if isinstance(value, Mapping) and name == "columns" else value
        for name, value in dataclasses.asdict(settings).items()
        if name not in ("strict", "known_names")
    }


class _Reader:
    """Reads pictures one by one, writes their levels to a file, and keeps what is known of them."""

    def __init__(self, listing: Listing, settings: PackSettings, waiting: IO[bytes]) -> None:
        self._listing = listing
        self._settings = settings
        self._waiting = waiting
        self._size = settings.size
        self._channels = _CHANNELS.get(settings.mode)
        self._first: str | None = None
        self._numbers = array("q")
        self._digests = bytearray()
        self._hashes = bytearray()
        self._constant = bytearray()
        self._masks = MaskReader(listing.class_names, settings.reading) if listing.source.has_masks else None
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._modes: Counter[str] = Counter()

    def read(self, number: int) -> None:
        """Take one file, or keep what is wrong with it."""
        listing, reading = self._listing, self._settings.reading
        if number in listing.errors:
            return
        path = Path(listing.files[number])
        try:
            image = read_image(path, max_pixels=reading.max_pixels, window=reading.window, frame=reading.frame)
            mask = None if self._masks is None else self._masks.read(listing.masks[number], *image.shape[:2])
        except ValueError as error:
            if self._settings.strict:
                raise
            listing.errors[number] = str(error)
            return
        height, width, channels = image.shape
        mode = "colour" if channels == 3 else f"grey, {8 * image.element_size()} bits"
        self._sizes[height, width] += 1
        self._modes[f"{mode}, DICOM" if is_dicom(path) else mode] += 1
        packed = self._packed(made_square(image, reading.fit), str(path))
        self._waiting.write(packed.numpy().tobytes())
        if self._masks is not None and mask is not None:
            self._waiting.write(self._masks.keep(listing.masks[number], mask, len(packed)))
        self._numbers.append(number)
        self._constant.append(bool((image == image.flatten()[0]).all()))
        content = hashlib.blake2b(repr((tuple(image.shape), str(image.dtype))).encode(), digest_size=16)
        content.update(image.contiguous().numpy().tobytes())
        self._digests += content.digest()
        self._hashes += perceptual_hash(packed.numpy())

    def result(self) -> PackedPictures:
        """Return what is known of the pictures that were taken."""
        if self._size is None or self._channels is None or not self._numbers:
            errors = self._listing.errors
            raise ValueError(f"none of {len(self._listing.files)} pictures can be read; {errors[min(errors)]}")
        n = len(self._numbers)
        masks = None
        if self._masks is not None:
            self._listing.class_names, table = self._masks.classes()
            presence = self._masks.presence(table, len(self._listing.class_names))
            masks = PackedMasks(table, presence, self._masks.digests)
        return PackedPictures(
            numbers=np.array(self._numbers, np.int64),
            splits=np.zeros(n, np.int8),
            digests=np.frombuffer(bytes(self._digests), np.uint64).reshape(n, -1),
            hashes=np.frombuffer(bytes(self._hashes), np.uint64).reshape(n, -1),
            is_constant=np.frombuffer(bytes(self._constant), bool),
            shape=(self._size, self._size, self._channels),
            sizes=self._sizes,
            modes=self._modes,
            masks=masks,
        )

    def _packed(self, image: Tensor, file: str) -> Tensor:
        """Return a picture at the size and with the channels of the data set, uint8 [S, S, C]."""
        height, width, channels = image.shape
        first = self._first or file
        if self._first is None:
            self._first = file
            if self._size is None and height != width:
                raise ValueError(
                    f"size must be given where pictures are not square ({file!r} is {width} x {height}), such as "
                    f"{_SIZES}"
                )
            self._size = self._size or height
            self._channels = self._channels or channels
        if self._settings.size is None and (height, width) != (self._size, self._size):
            raise ValueError(
                f"size must be given where pictures have several ({first!r}: {self._size} x {self._size}, {file!r}: "
                f"{width} x {height}), such as {_SIZES}"
            )
        if self._settings.mode == "auto" and channels != self._channels:
            kinds = [name for name, _ in sorted(_CHANNELS.items(), key=lambda item: item[1] != self._channels)]
            raise ValueError(
                f"mode must be grey or colour where pictures are mixed ({first!r} is {kinds[0]}, {file!r} {kinds[1]})"
            )
        assert self._size is not None
        assert self._channels is not None
        prepared = prepare_images(image[None], self._size, self._channels, allow_grey=True)[0]
        return ((prepared + 1) * HALF_RANGE).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def _splits_of(listing: Listing, packed: PackedPictures, settings: PackSettings) -> tuple[IntArray, tuple[str, ...]]:
    """Return the split of each picture that was read, and the splits that were made here."""
    numbers = packed.numbers
    labels, groups, given = (
        np.array(values)[numbers].astype(np.int64) for values in (listing.labels, listing.groups, listing.splits)
    )
    if settings.only_test:
        return np.full(len(numbers), TEST, np.int8), ()
    shares = {"val": settings.val, "test": settings.test}
    if listing.source.has_splits:
        is_train = given == TRAIN
        if not is_train.any():
            return given.astype(np.int8), ()
        shares = {name: 0.0 if (given == SPLITS.index(name)).any() else share for name, share in shares.items()}
    else:
        is_train = np.ones(len(numbers), bool)
        given = np.full(len(numbers), NOT_SAID)
    splits = given.astype(np.int8)
    own = groups[is_train] if listing.source.has_groups else None
    splits[is_train] = make_splits(labels[is_train], own, **shares, seed=settings.seed)
    torn = groups_in_two_splits(groups, splits)
    if len(torn):  # read_listing looked at given splits, make_splits divides whole groups
        raise RuntimeError(f"{len(torn)} groups are in several splits")
    absent = np.flatnonzero(packed.counts(labels, splits, len(listing.class_names))[:, TRAIN] == 0)
    if len(absent):
        raise ValueError(
            f"every class needs a picture for training that can be read; {listing.class_names[absent[0]]!r} has none"
        )
    return splits, ("train", *(name for name, share in shares.items() if share))
