"""What `msf classify` says of each picture: printed, written, and kept on the way."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from msf.cli import console
from msf.cli.per_image import csv_lines
from msf.cli.targets import write_result
from msf.files.journal import Journal
from msf.interruption import undisturbed

if TYPE_CHECKING:
    from msf.judge.decisions import PictureDecisions
    from msf.judge.uncertainty import Prediction

FORMAT = "msf-classify/1"
SHOWN = 30  # rows printed; files hold all
FAILURES_SHOWN = 20
_UNREAD = -1
_STAMP = "stamp"  # size and time of a file, by which a row is known to be still its own


class PictureRows:
    """One row per file: what the network says of it, or what is wrong with it.

    Rows lie in a journal on the disk; what is kept in memory is a few numbers per file.

    Args:
        files: The files, in the order of the rows.
        score: Name of the uncertainty score that ranks pictures.
        journal: Where the rows lie; those that are there are taken for files that have not changed since.
        decisions: What calibration says of single pictures, if it was asked for.
    """

    def __init__(
        self, files: Sequence[str], *, score: str, journal: Journal, decisions: PictureDecisions | None = None
    ) -> None:
        """Take the rows that the journal holds."""
        self.files = files
        self.n_resumed = 0
        self.micro_batch: int | None = None
        self._score = score
        self._journal = journal
        self._places = array("q", [_UNREAD]) * len(files)
        self._uncertainty = array("d", [np.nan]) * len(files)
        self._decisions = decisions
        self._referred: set[int] | None = set() if decisions is not None and decisions.rule is not None else None
        self._take_finished()

    @property
    def unread(self) -> list[int]:
        """Numbers of the files of which nothing is known yet."""
        return [number for number, place in enumerate(self._places) if place == _UNREAD]

    @property
    def n_classified(self) -> int:
        """Number of pictures that have a label."""
        return int((~np.isnan(np.array(self._uncertainty))).sum())

    def fail(self, number: int, reason: str) -> None:
        """Keep what is wrong with a file."""
        self._uncertainty[number] = np.nan
        self._places[number] = self._journal.append(
            {"file": self.files[number], "error": reason, _STAMP: _stamp(self.files[number])}
        )

    def add(self, prediction: Prediction, numbers: Sequence[int], class_names: tuple[str, ...]) -> None:
        """Keep a prediction; a picture without finite distances and probabilities counts as failed.

        Args:
            prediction: Of as many pictures as there are numbers.
            numbers: Which files they are.
            class_names: Names of the classes.
        """
        from msf.judge.metrics import is_sound

        self.micro_batch = prediction.micro_batch
        scores = {name: values.tolist() for name, values in prediction.scores().items()}
        records, sound = prediction.to_records(class_names), is_sound(prediction).tolist()
        decided = [{}] * len(records) if self._decisions is None else self._decisions.records(prediction, class_names)
        for position, (number, record) in enumerate(zip(numbers, records, strict=True)):
            file = self.files[number]
            if not sound[position]:
                self.fail(number, f"{file!r} could not be classified: the network's outputs for it are not finite")
                continue
            own = {name: values[position] for name, values in scores.items()}
            row = {"file": file, "error": None, **record, "scores": own, **decided[position], _STAMP: _stamp(file)}
            self._places[number] = self._journal.append(row)
            self._uncertainty[number] = own[self._score]
            self._note_referral(number, row)

    def sync(self) -> None:
        """See to it that the rows so far survive whatever comes."""
        with undisturbed():
            self._journal.sync()

    def refer(self, share: float | None) -> None:
        """Mark that share of the classified pictures, the most uncertain ones; None: nothing is said of it."""
        if share is None:
            return
        uncertainty = np.array(self._uncertainty)
        known = np.flatnonzero(~np.isnan(uncertainty))
        ranked = known[np.argsort(-uncertainty[known], kind="stable")]
        self._referred = set(ranked[: round(share * len(ranked))].tolist())

    def show(self) -> None:
        """Print the first rows as a table."""
        numbers = np.flatnonzero(~np.isnan(np.array(self._uncertainty))).tolist()
        names = distinct_names([self.files[number] for number in numbers[:SHOWN]])
        has_referral = self._referred is not None
        lines = [["picture", "label", "probability", self._score] + ["referral"] * has_referral]
        for number, name in zip(numbers[:SHOWN], names, strict=True):
            row = self._row(number)
            of_label = list(row["probability"].values())[row["label"]]
            line = [name, row["label_name"], console.shown(of_label, 3), console.shown(self._uncertainty[number])]
            if has_referral:
                line.append("refer to a person" if row["is_referred"] else "keep")
            lines.append(line)
        console.print_table(lines)
        if len(numbers) > SHOWN:
            console.out.print(f"... and {len(numbers) - SHOWN} more (all of them with --csv or --json)")
        if self._referred is not None:
            console.out.print(f"{len(self._referred)} of {len(numbers)} pictures to refer to a person")

    def write(self, csv_file: Path | None, json_file: Path | None, made_with: Mapping[str, Any]) -> None:
        """Write what is known of every file; what cannot be written is kept elsewhere, and the journal stays then.

        Args:
            csv_file: Table to write, if any.
            json_file: JSON to write, if any.
            made_with: What `msf.provenance.provenance` returns.

        Raises:
            OSError: A file could not be written. The text says where its content is; the other file is written.
        """
        error: OSError | None = None
        contents: tuple[tuple[Path | None, Callable[[], Iterator[str]]], ...] = (
            (csv_file, lambda: self._csv(made_with)),
            (json_file, lambda: self._json(made_with)),
        )
        with undisturbed():
            for path, content in contents:
                try:
                    if path is not None:
                        write_result(path, content)
                except OSError as caught:
                    error = caught
        if error is not None:
            raise error

    def close(self, *, are_written: bool) -> None:
        """End the work with the journal; it goes if its rows are written elsewhere, or there are none."""
        with undisturbed(is_last=True):
            self._journal.close(remove=are_written or not self.n_classified)

    def keep(self, error: BaseException) -> bool:
        """Keep the finished rows where the work ends early, and tell where with the error; return if they go on."""
        n = self.n_classified
        told = f"{n} of {len(self.files)} pictures are classified"
        with undisturbed(is_last=True):
            if n and self._journal.path is not None:
                self._journal.sync()
                error.add_note(f"{told}: their rows are in {str(self._journal.path)!r}")
            elif n:
                self.show()
                error.add_note(f"{told}: the table above")
                error.add_note("the same command classifies all of them anew")
        return bool(n and self._journal.path is not None)

    def tell_failures(self) -> bool:
        """Name the files without a label on standard error; return whether there are none."""
        failed = np.flatnonzero(np.isnan(np.array(self._uncertainty)) & (np.array(self._places) != _UNREAD)).tolist()
        for number in failed[1:FAILURES_SHOWN]:
            console.err.print(f"not classified: {console.printable(self._row(number)['error'])}")
        if len(failed) > FAILURES_SHOWN:
            console.err.print(f"not classified: {len(failed) - FAILURES_SHOWN} more (field 'error' of --csv or --json)")
        if failed:
            first = console.printable(self._row(failed[0])["error"])
            console.err.print(f"msf: not classified: {len(failed)} of {len(self.files)} pictures; {first}")
        return not failed

    def tell_none(self) -> NoReturn:
        """Say that no picture could be classified.

        Raises:
            ValueError: Always.
        """
        tell_none([self._row(number)["error"] for number, place in enumerate(self._places) if place != _UNREAD])

    def _take_finished(self) -> None:
        numbers: dict[str, int] | None = None
        for place, row in self._journal.rows():
            numbers = {file: n for n, file in enumerate(self.files)} if numbers is None else numbers
            number = numbers.get(row.get("file", ""))
            if number is None or row.get(_STAMP) != _stamp(self.files[number]):
                continue
            self._places[number] = place
            self._uncertainty[number] = row["scores"][self._score] if row["error"] is None else np.nan
            if row["error"] is None:
                self.micro_batch = row["micro_batch"]
                self._note_referral(number, row)
        self.n_resumed = len(self.files) - len(self.unread)

    def _note_referral(self, number: int, row: Mapping[str, Any]) -> None:
        if self._referred is not None and row.get("is_referred"):
            self._referred.add(number)

    def _row(self, number: int) -> dict[str, Any]:
        row = self._journal.read(self._places[number])
        del row[_STAMP]
        if row["error"] is None:
            row["index"] = number
            if self._referred is not None:
                row["is_referred"] = number in self._referred
        return row

    def _all(self) -> Iterator[dict[str, Any]]:
        """Yield the rows in the order of the files; of those not reached yet there are none."""
        return (self._row(number) for number, place in enumerate(self._places) if place != _UNREAD)

    def _csv(self, made_with: Mapping[str, Any]) -> Iterator[str]:
        from msf.judge.uncertainty import flat_row
        from msf.provenance import flat_provenance

        first = self._row(int(np.flatnonzero(~np.isnan(np.array(self._uncertainty)))[0]))
        columns = flat_row(_with_flat_scores(first))
        constant = {name: value for name, value in flat_provenance(dict(made_with)).items() if name not in columns}
        rows = ({**flat_row(_with_flat_scores(row)), **constant} for row in self._all())
        return csv_lines([*columns, *constant], rows)

    def _json(self, made_with: Mapping[str, Any]) -> Iterator[str]:
        head = json.dumps({"format": FORMAT, "provenance": made_with}, indent=2, allow_nan=False)
        yield head.removesuffix("\n}") + ',\n  "rows": ['
        for number, row in enumerate(self._all()):
            lines = json.dumps(row, indent=2, allow_nan=False).replace("\n", "\n    ")
            yield f"{',' if number else ''}\n    {lines}"
        yield "\n  ]\n}\n"


def tell_none(reasons: Sequence[str]) -> NoReturn:
    """Say that no picture could be classified, and why the first could not.

    Raises:
        ValueError: Always.
    """
    if len(reasons) == 1:
        raise ValueError(reasons[0])
    raise ValueError(f"none of {len(reasons)} pictures could be classified; {reasons[0]}")


def distinct_names(files: Sequence[str]) -> list[str]:
    """Return names that tell files apart: their own, or their paths below the folder that holds them all."""
    names = [os.path.basename(file) for file in files]
    if len(set(names)) == len(names):
        return names
    places = [os.path.abspath(file) for file in files]
    common = os.path.commonpath(places)
    return [os.path.relpath(place, common) for place in places]


def _with_flat_scores(row: Mapping[str, Any]) -> dict[str, Any]:
    scores = {f"score_{name}": value for name, value in row.get("scores", {}).items()}
    return {name: value for name, value in row.items() if name != "scores"} | scores


def _stamp(file: str) -> list[int] | None:
    try:
        found = os.stat(file)
    except (OSError, ValueError):  # the second: a name with a NUL, which a table may hold
        return None
    return [found.st_size, found.st_mtime_ns]
