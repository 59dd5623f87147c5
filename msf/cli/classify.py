"""`msf classify`."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow
from msf.cli.picture_rows import PictureRows
from msf.cli.targets import check_apart
from msf.config import FitName

if TYPE_CHECKING:
    from torch import Tensor

    from msf.medsymmflow import MedSymmFlow

_FIRST_PART = 32  # pictures; parts grow while they take less than this many seconds, so that little is ever lost
_PART_SECONDS = 10.0
_PART_BYTES = 1 << 30  # prepared pictures that exist at once


@dataclass(frozen=True)
class Referral:
    """Which pictures a person should look at."""

    refer: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of the pictures, the most uncertain ones, to refer to a person. Default: none is marked.",
        ),
    ] = None
    score: Annotated[str, typer.Option(help="Uncertainty score that ranks them.")] = "nearest_distance"


@dataclass(frozen=True)
class Reading:
    """How picture files are read."""

    fit: Annotated[
        FitName,
        typer.Option(
            help="What becomes of a picture that is not square: stretch it, or crop it to its central square."
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


@flags.grouped
def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...", readable=False, help="Picture files, or folders of them, searched at every depth."
        ),
    ],
    *,
    checkpoint: flags.Checkpoint = None,
    referral: Referral,
    reading: Reading,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write one row per picture."),
    ] = None,
    fields: flags.ClassifyFields,
    run: flags.Run,
) -> None:
    """Classify pictures, with probabilities, distances and uncertainty for each.

    Pictures may have any size and mode. One that cannot be read or classified is named, and the others are classified;
    the exit code is then 1. Not for clinical use.
    """
    from msf.data import search_images
    from msf.data.picture_files import described
    from msf.judge.uncertainty import UNCERTAINTY_SCORES

    if referral.score not in UNCERTAINTY_SCORES:
        raise ValueError(f"score must be one of {', '.join(UNCERTAINTY_SCORES)}; got {referral.score!r}")
    found = search_images(images)
    check_apart({"--csv": csv_file, "--json": run.json_file}, [*found.files, *files_of(checkpoint)])
    rows = PictureRows(found.files, found.failures, score=referral.score)
    if found.skipped:
        console.err.print(f"skipped: {console.printable(described(found.skipped))}")
    if not rows.unread:
        rows.tell_none()
    network = load_flow(checkpoint, run.device)
    try:
        with console.progress_bar("classifying", lines=True) as advance:
            _Classification(network, rows, reading, run.seed, fields).run(advance)
    except BaseException as error:
        rows.keep(error, csv_file, run.json_file)
        raise
    if not rows.n_classified:
        rows.tell_none()
    rows.refer(referral.refer)
    try:
        rows.write(csv_file, run.json_file)
    finally:
        rows.show()
    if not rows.tell_failures():
        raise typer.Exit(1)


class _Classification:
    """The work, in parts: read some files, classify them, keep their rows."""

    def __init__(
        self, network: MedSymmFlow, rows: PictureRows, reading: Reading, seed: int, fields: dict[str, Any]
    ) -> None:
        self._network = network
        self._rows = rows
        self._seed = seed
        self._fields = dict(fields)
        self._reading: dict[str, Any] = {"fit": reading.fit}
        if reading.max_pixels is not None:
            self._reading["max_pixels"] = reading.max_pixels

    def run(self, advance: console.Advance) -> None:
        """Classify all files, and show how far that is."""
        waiting = self._rows.unread
        channels, size = self._network.task.image_channels, self._network.config.data.image_size
        largest = max(1, _PART_BYTES // (4 * channels * size**2))
        n_done, n_part = 0, _FIRST_PART
        while n_done < len(waiting):
            started = time.monotonic()
            part = waiting[n_done : n_done + min(n_part, largest)]
            self._run_part(part, functools.partial(_advance, advance, n_done, len(waiting)))
            n_done += len(part)
            if time.monotonic() - started < _PART_SECONDS:
                n_part *= 2

    def _run_part(self, part: Sequence[int], show: Callable[[int], None]) -> None:
        from msf.data import load_pictures

        channels, size = self._network.task.image_channels, self._network.config.data.image_size
        loaded = load_pictures([self._rows.files[number] for number in part], size, channels, **self._reading)
        for row, reason in loaded.failures.items():
            self._rows.fail(part[row], reason)
        if loaded.rows:
            error = self._classify(loaded.images, [part[row] for row in loaded.rows], show)
            if error is not None and not self._rows.n_classified:  # the settings, and not the pictures
                raise error
        show(len(part))

    def _classify(self, images: Tensor, numbers: Sequence[int], show: Callable[[int], None]) -> Exception | None:
        """Keep the rows of some pictures; return the error of one that cannot be classified, if there is any."""

        def progress(n_done: int, n_total: int) -> None:
            show(n_done * len(numbers) // n_total)

        from msf.judge.uncertainty import InvalidPredictionError

        fields = {**self._fields, "value_range": "signed"}
        try:
            prediction = self._network.classify(images, seed=self._seed, progress=progress, **fields)
        except InvalidPredictionError as error:
            prediction = error.prediction
        except (ValueError, FloatingPointError) as error:
            if len(numbers) == 1:
                file = str(self._rows.files[numbers[0]])
                self._rows.fail(numbers[0], f"{file!r} could not be classified: {error}")
                return error
            half = len(numbers) // 2
            errors = [self._classify(images[part], numbers[part], show) for part in (slice(half), slice(half, None))]
            return next((error for error in errors if error is not None), None)
        # One for all parts, so that no picture depends on how they were cut.
        self._fields["micro_batch"] = prediction.micro_batch
        self._rows.add(prediction, numbers, self._network.task.class_names)
        return None


def _advance(advance: console.Advance, before: int, total: int, done: int) -> None:
    advance(before + done, total)
