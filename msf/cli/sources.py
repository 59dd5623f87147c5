"""Flags that say how pictures are read and become a data set, and what the commands do with them."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msf.cli import console
from msf.cli.flags import DataRoot
from msf.config import FitName

if TYPE_CHECKING:
    from msf.data import ImageDataset
    from msf.data.packing import PackSettings
    from msf.data.pictures import Reading

_SHOWN_SKIPPED = 10
_COLUMN = "Column of a table with the {}. Default: {}."


@dataclass(frozen=True)
class ReadingFlags:
    """How picture files are read."""

    fit: Annotated[
        FitName,
        typer.Option(
            help="What becomes of a picture that is not square: stretch it, crop it to its central square, or pad it "
            "with black."
        ),
    ] = "stretch"
    max_pixels: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pixels of the largest picture that is decoded; a larger JPEG is read at a reduced size. Default: 67 "
            "million.",
        ),
    ] = None
    window: Annotated[
        str | None,
        typer.Option(
            metavar="CENTRE,WIDTH|auto|none",
            help="Values that become black and white, of DICOM (in units of its modality) and 16-bit grey pictures: a "
            "window; auto: the file's own, else smallest and largest; none: the whole range. Default: auto for DICOM, "
            "none for others.",
        ),
    ] = None
    frame: Annotated[
        int | None, typer.Option(min=1, help="Which picture of a file of several, from 1. Default: such are refused.")
    ] = None

    @property
    def reading(self) -> Reading:
        """The record that the readers take."""
        from msf.data.pictures import MAX_PIXELS, Reading
        from msf.data.window import parse_window

        return Reading(
            fit=self.fit,
            max_pixels=MAX_PIXELS if self.max_pixels is None else self.max_pixels,
            window=parse_window(self.window),
            frame=self.frame,
        )


@dataclass(frozen=True)
class PackFlags(ReadingFlags):
    """How a data set is made of picture files."""

    mode: Annotated[
        Literal["auto", "grey", "colour"] | None,
        typer.Option(help="Grey or colour; auto: as the pictures are. Default: auto, or what a trained network takes."),
    ] = None
    val: Annotated[
        float, typer.Option(min=0, max=1, help="Share for choosing, unless the source has such a split.")
    ] = 0.15
    test: Annotated[
        float, typer.Option(min=0, max=1, help="Share for testing, unless the source has such a split.")
    ] = 0.15
    only_test: Annotated[bool, typer.Option("--only-test", help="Take all pictures of the source for testing.")] = False
    class_names: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME,...", help="What the classes are called, in the order of their numbers."),
    ] = None
    file_column: Annotated[str | None, typer.Option(help=_COLUMN.format("file", "file, path, filename or image"))] = (
        None
    )
    label_column: Annotated[str | None, typer.Option(help=_COLUMN.format("class", "label or class"))] = None
    split_column: Annotated[
        str | None, typer.Option(help=_COLUMN.format("split (train, val, test)", "split, if there is one"))
    ] = None
    group_column: Annotated[
        str | None,
        typer.Option(
            help=_COLUMN.format("group, such as the patient, that no two splits share", "group, patient or patient_id")
        ),
    ] = None

    def settings(
        self, *, seed: int, size: int | None, mode: str = "auto", known_names: Sequence[str] = (), strict: bool = False
    ) -> PackSettings:
        """Return the record that packing takes; `mode` holds where the flag was not given."""
        from msf.data.packing import PackSettings

        given: Any = self.mode or mode
        return PackSettings(
            size=size,
            mode=given,
            reading=self.reading,
            val=self.val,
            test=self.test,
            only_test=self.only_test,
            seed=seed,
            class_names=self.names,
            known_names=tuple(known_names),
            columns={name: getattr(self, f"{name}_column") for name in ("file", "label", "split", "group", "mask")},
            masks=None if self.masks is None else str(self.masks),
            strict=strict,
        )

    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Masks of a folder of pictures, which give every pixel a class: files at the same places in this "
            "folder.",
        ),
    ] = None
    mask_column: Annotated[
        str | None, typer.Option(help=_COLUMN.format("mask, instead of a class", "mask, if there is no class"))
    ] = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the classes, where they were given; one with a comma stands in quotes."""
        if self.class_names is None:
            return None
        return tuple(name.strip() for name in next(csv.reader([self.class_names], skipinitialspace=True), []))


@dataclass(frozen=True)
class DatasetFlags(PackFlags):
    """The same for commands that take data sets by name too, and have another use for `--seed`."""

    data_root: DataRoot = None
    split_seed: Annotated[int, typer.Option(min=0, help="Seed of the splits of a folder or a table.")] = 0


def open_dataset(
    name: str,
    flags: DatasetFlags,
    advance: console.Advance,
    *,
    size: int,
    required: Sequence[str] = ("train", "val", "test"),
    mode: str = "auto",
    known_names: Sequence[str] = (),
) -> ImageDataset:
    """Return a data set by name or path; a folder or a table of pictures is packed into the cache before.

    Args:
        name: Data set name, path of an .npz, a folder or a table.
        flags: How it is packed.
        advance: Shows how far that is.
        size: Height and width of the pictures that are packed.
        required: Splits that must hold pictures.
        mode: Their channels, where the flags do not say.
        known_names: Classes of a trained network.

    Raises:
        ValueError: See `msf.data.load_dataset` and `msf.data.packing.pack_pictures`.
        FileNotFoundError: Likewise.
    """
    from msf.data import is_source, known_datasets, load_dataset
    from msf.data.table import NOT_TAKEN, split_size

    if split_size(name)[0].lower() in (*known_datasets(), *NOT_TAKEN) or not is_source(name):
        return load_dataset(name, flags.data_root, required=required, class_names=flags.names)
    from msf.data.packing import pack_into

    settings = flags.settings(seed=flags.split_seed, size=size, mode=mode, known_names=known_names)
    path, report = pack_into(
        cache_folder(), name, settings, lambda done, total: advance(done, total, stage=f"packing {name}")
    )
    tell_report(report, console.err.print)
    console.err.print(f"packed: {console.printable(str(path))}")
    return load_dataset(path, required=required)


def is_packed(dataset: ImageDataset) -> bool:
    """Return whether a data set is one that a command packed on its way."""
    return dataset.path is not None and dataset.path.parent == cache_folder()


def cache_folder() -> Path:
    """Return the folder of data sets that commands packed on their way; it may be deleted at any time."""
    named = os.environ.get("MSF_CACHE")
    root = Path(named).expanduser() if named else Path.home() / ".cache" / "medsymmflow"
    return root.absolute() / "packed"


def tell_report(report: Mapping[str, Any], say: Any) -> None:
    """Print what was skipped, and what one should know of a data set before training on it."""
    for entry in report["skipped"][:_SHOWN_SKIPPED]:
        say(f"skipped: {console.printable(entry['reason'])}")
    if report["n_skipped"] > _SHOWN_SKIPPED:
        say(f"skipped: {report['n_skipped'] - _SHOWN_SKIPPED} more (all of them in the rows beside the data set)")
    for entry in report["not_pictures"]:
        say(f"left out: {entry['n']} {console.printable(entry['kind'])}")
    for note in report["notes"]:
        say(f"note: {console.printable(note)}")
