"""`msf classify`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow, named_checkpoint
from msf.cli.picture_rows import FORMAT, PictureRows, tell_none
from msf.cli.sources import ReadingFlags
from msf.cli.targets import check_apart, journal_beside
from msf.config import settings_for
from msf.files.journal import Journal

if TYPE_CHECKING:
    from torch import Tensor

    from msf.config import ClassifySettings
    from msf.data import Reading
    from msf.judge.decisions import PictureDecisions
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
            help="Share of these pictures, the most uncertain of them, to refer to a person; who is among them depends "
            "on the others. Default: none is marked.",
        ),
    ] = None
    score: Annotated[
        str | None,
        typer.Option(help="Uncertainty score that ranks them. Default: nearest_distance, or that of --refer-at."),
    ] = None
    refer_at: Annotated[
        str | None,
        typer.Option(
            metavar="risk=X",
            help="Refer every picture above the threshold that 'msf calibrate' found for that error rate among the "
            "others; it does not depend on which pictures there are.",
        ),
    ] = None
    sets: Annotated[
        float | None,
        typer.Option(
            metavar="LEVEL",
            help="Give every picture the classes that cannot be ruled out, by 'msf calibrate': the true one is among "
            "them with that probability, such as 0.95.",
        ),
    ] = None
    scaled: Annotated[
        bool, typer.Option("--scaled", help="Also give the probabilities that 'msf calibrate' scaled.")
    ] = False

    def check(self) -> None:
        """Refuse what cannot be, before any work.

        Raises:
            ValueError: An unknown score, or see `risk`.
        """
        from msf.judge.uncertainty import check_score

        if self.score is not None:
            check_score(self.score)
        if self.risk is not None and self.refer is not None:
            raise ValueError("refer is a share of these pictures, and refer-at a threshold: give one of them")

    @property
    def risk(self) -> float | None:
        """The error rate of `--refer-at`.

        Raises:
            ValueError: It is something else.
        """
        if self.refer_at is None:
            return None
        name, _, text = self.refer_at.partition("=")
        if name.strip() != "risk" or "," in text:
            raise ValueError(f"refer-at must be risk=X, such as risk=0.02; got {self.refer_at!r}")
        return flags.shares("refer-at", text.strip())[0]


@flags.grouped
def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE...",
            readable=False,
            help="Picture files, folders of them, searched at every depth, or tables (CSV, Parquet) that name them.",
        ),
    ],
    *,
    checkpoint: flags.Checkpoint = None,
    referral: Referral,
    reading: ReadingFlags,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", metavar="FILE", help="Write one row per picture."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the rows that an interrupted run left beside --csv or --json.")
    ] = False,
    fields: flags.ClassifyFields,
    run: flags.Run,
) -> None:
    """Classify pictures, with probabilities, distances and uncertainty for each.

    Pictures may have any size and mode. One that cannot be read or classified is named, and the others are classified;
    the exit code is then 1. Not for clinical use.
    """
    from msf.data.picture_files import ImageSearch, described
    from msf.provenance import provenance

    referral.check()
    place = journal_beside(csv_file, run.json_file)
    if resume and place is None:
        raise ValueError("resume needs the --csv or --json that the interrupted run had: its rows lie beside it")
    how = reading.reading
    search = ImageSearch()
    files: list[str] = []
    failures: dict[int, str] = {}
    for file, failure in search.found(_named(images)):
        if failure is not None:
            failures[len(files)] = failure
        files.append(file)
    results = {"--csv": csv_file, "--json": run.json_file, "the finished rows": place}
    check_apart(results, itertools.chain(map(Path, files), files_of(checkpoint)))
    if search.skipped:
        console.err.print(f"skipped: {console.printable(described(search.skipped))}")
    if not files:
        raise ValueError(f"{', '.join(repr(str(path)) for path in images)} names no picture")
    if len(failures) == len(files):
        tell_none(list(failures.values()))
    folder = named_checkpoint(checkpoint)
    network = load_flow(folder, run.device)
    settings = settings_for("classify", network.config.inference.classify, None, fields)
    decisions = _decisions(folder, network, settings, referral)
    made_with = provenance(network, settings, seed=run.seed, micro_batch=settings.micro_batch)
    if decisions is not None:
        made_with["decisions"] = decisions.described()
    journal = Journal(place, {"format": FORMAT, **made_with, "reading": dataclasses.asdict(how)}, resume=resume)
    score = referral.score or (decisions.score if decisions is not None else None) or "nearest_distance"
    rows = PictureRows(files, score=score, journal=journal, decisions=decisions)
    are_written = False
    try:
        if rows.n_resumed:
            console.err.print(f"{rows.n_resumed} of {len(files)} pictures are finished")
        try:
            for number, reason in failures.items():
                rows.fail(number, reason)
            with console.progress_bar("classifying", lines=True) as advance:
                _Classification(network, rows, how, run.seed, fields).run(advance)
        except BaseException as error:
            if rows.keep(error):
                console.note_command(error)
            raise
        if not rows.n_classified:
            rows.tell_none()
        rows.refer(referral.refer)
        try:
            rows.write(csv_file, run.json_file, {**made_with, "micro_batch": rows.micro_batch})
            are_written = True
        finally:
            rows.show()
        if not rows.tell_failures():
            raise typer.Exit(1)
    finally:
        rows.close(are_written=are_written)


def _decisions(
    folder: str, network: MedSymmFlow, settings: ClassifySettings, wished: Referral
) -> PictureDecisions | None:
    """Return what the calibration beside the checkpoint says of single pictures, as far as that was wished for."""
    from msf.calibrate import load_calibration, made_with
    from msf.judge.decisions import PictureDecisions

    if wished.risk is None and wished.sets is None and not wished.scaled:
        return None
    calibration = load_calibration(folder)
    calibration.require_same(made_with(network, settings))
    rule = None if wished.risk is None else calibration.rule_for(wished.risk)
    if rule is not None and wished.score not in (None, rule.score):
        raise ValueError(f"score must be {rule.score}, which refer-at was calibrated with; got {wished.score}")
    return PictureDecisions(
        digest=calibration.digest,
        rule=rule,
        sets=None if wished.sets is None else calibration.sets_for(wished.sets),
        scaling=calibration.scaling if wished.scaled else None,
    )


def _named(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield files and folders, with the files that a table names in its place."""
    from msf.data.sources import TABLE_SUFFIXES, table_files

    for path in paths:
        if path.suffix.lower() in TABLE_SUFFIXES and path.is_file():
            yield from table_files(path)
        else:
            yield path


class _Classification:
    """The work, in parts: read some files, classify them, keep their rows."""

    def __init__(
        self, network: MedSymmFlow, rows: PictureRows, reading: Reading, seed: int, fields: dict[str, Any]
    ) -> None:
        self._network = network
        self._rows = rows
        self._seed = seed
        self._fields = dict(fields)
        self._reading = reading
        if rows.micro_batch is not None:  # that of the rows that are finished: equal bits need an equal one
            self._fields["micro_batch"] = rows.micro_batch

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
        loaded = load_pictures([Path(self._rows.files[number]) for number in part], size, channels, self._reading)
        for row, reason in loaded.failures.items():
            self._rows.fail(part[row], reason)
        if loaded.rows:
            error = self._classify(loaded.images, [part[row] for row in loaded.rows], show)
            if error is not None and not self._rows.n_classified:  # the settings, and not the pictures
                raise error
        self._rows.sync()
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
                file = self._rows.files[numbers[0]]
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
