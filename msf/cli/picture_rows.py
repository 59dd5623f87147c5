"""What `msf classify` says of each picture: printed, written, and kept where the work ends early."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from msf.cli import console
from msf.cli.targets import beside, write_result
from msf.interruption import undisturbed

if TYPE_CHECKING:
    from msf.judge.uncertainty import Prediction

SHOWN = 30  # rows printed; files hold all
FAILURES_SHOWN = 20


class PictureRows:
    """One row per file: what the network says of it, or what is wrong with it.

    Args:
        files: The files, in the order of the rows.
        failures: For each file that cannot be read, its number and what is wrong with it.
        score: Name of the uncertainty score that ranks pictures.
    """

    def __init__(self, files: Sequence[Path], failures: Mapping[int, str], *, score: str) -> None:
        """Start with what is known before anything is read."""
        self.files = files
        self._failures = dict(failures)
        self._score = score
        self._rows: dict[int, dict[str, Any]] = {}
        self._uncertainty: dict[int, float] = {}
        self._probability: dict[int, float] = {}  # of the label

    @property
    def unread(self) -> list[int]:
        """Numbers of the files of which nothing is known yet."""
        return [n for n in range(len(self.files)) if n not in self._failures and n not in self._rows]

    @property
    def n_classified(self) -> int:
        """Number of pictures that have a label."""
        return len(self._rows)

    def fail(self, number: int, reason: str) -> None:
        """Keep what is wrong with a file."""
        self._failures[number] = reason

    def add(self, prediction: Prediction, numbers: Sequence[int], class_names: tuple[str, ...]) -> None:
        """Keep a prediction; a picture without finite distances and probabilities counts as failed.

        Args:
            prediction: Of as many pictures as there are numbers.
            numbers: Which files they are.
            class_names: Names of the classes.
        """
        from msf.judge.metrics import is_sound

        scores = prediction.scores()[self._score].tolist()
        probability = prediction.probability.tolist()
        sound_rows = is_sound(prediction).tolist()
        for number, row, score, of_classes, sound in zip(
            numbers, prediction.to_rows(class_names), scores, probability, sound_rows, strict=True
        ):
            if sound:
                self._rows[number] = {"file": str(self.files[number]), "error": None, **row, "index": number}
                self._uncertainty[number] = score
                self._probability[number] = of_classes[row["label"]]
            else:
                file = str(self.files[number])
                self.fail(number, f"{file!r} could not be classified: the network's outputs for it are not finite")

    def refer(self, share: float | None) -> None:
        """Mark that share of the classified pictures, the most uncertain ones; None: nothing is said of it."""
        if share is None:
            return
        ranked = sorted(self._uncertainty, key=lambda number: -self._uncertainty[number])  # stable
        referred = set(ranked[: round(share * len(ranked))])
        for number, row in self._rows.items():
            row["is_referred"] = number in referred

    def show(self) -> None:
        """Print the first rows as a table."""
        numbers = sorted(self._rows)
        names = distinct_names([self.files[number] for number in numbers])
        has_referral = any("is_referred" in row for row in self._rows.values())
        lines = [["picture", "label", "probability", self._score] + ["referral"] * has_referral]
        for number, name in list(zip(numbers, names, strict=True))[:SHOWN]:
            row = self._rows[number]
            line = [
                name,
                row["label_name"],
                console.shown(self._probability[number], 3),
                console.shown(self._uncertainty[number]),
            ]
            if has_referral:
                line.append("refer to a person" if row["is_referred"] else "keep")
            lines.append(line)
        console.print_table(lines)
        if len(numbers) > SHOWN:
            console.out.print(f"... and {len(numbers) - SHOWN} more (all of them with --csv or --json)")
        if has_referral:
            n_referred = sum(row["is_referred"] for row in self._rows.values())
            console.out.print(f"{n_referred} of {len(numbers)} pictures to refer to a person")

    def write(self, csv_file: Path | None, json_file: Path | None) -> None:
        """Write what is known of every file; what cannot be written is kept elsewhere.

        Raises:
            OSError: A file could not be written. The text says where its content is; the other file is written.
        """
        error: OSError | None = None
        with undisturbed():
            for path, text in ((csv_file, self._csv), (json_file, self._json)):
                try:
                    if path is not None:
                        write_result(path, text())
                except OSError as caught:
                    error = caught
        if error is not None:
            raise error

    def keep(self, error: BaseException, csv_file: Path | None, json_file: Path | None) -> None:
        """Write the rows that are there beside the files that were to hold all, and tell that with the error."""
        if not self._rows:
            return
        n = f"{self.n_classified} of {len(self.files)} pictures are classified"
        files = [None if path is None else beside(path) for path in (csv_file, json_file)]
        with undisturbed(is_last=True):
            if any(files):
                try:
                    self.write(*files)
                    kept = " and ".join(repr(str(path)) for path in files if path)
                    error.add_note(f"{n}: their rows are in {kept}")
                except OSError as failed:
                    error.add_note(f"{n}; {failed}")
            else:
                self.show()
                error.add_note(f"{n}: the table above")
            error.add_note("the same command classifies all of them anew")

    def tell_failures(self) -> bool:
        """Name the files without a label on standard error; return whether there are none."""
        reasons = [self._failures[number] for number in sorted(self._failures)]
        for reason in reasons[1:FAILURES_SHOWN]:
            console.err.print(f"not classified: {console.printable(reason)}")
        if len(reasons) > FAILURES_SHOWN:
            console.err.print(
                f"not classified: {len(reasons) - FAILURES_SHOWN} more (field 'error' of --csv or --json)"
            )
        if reasons:
            console.err.print(
                f"msf: not classified: {len(reasons)} of {len(self.files)} pictures; {console.printable(reasons[0])}"
            )
        return not reasons

    def tell_none(self) -> NoReturn:
        """Say that no picture could be classified.

        Raises:
            ValueError: Always.
        """
        reason = self._failures[min(self._failures)]
        if len(self.files) == 1:
            raise ValueError(reason)
        raise ValueError(f"none of {len(self.files)} pictures could be classified; {reason}")

    def _all(self) -> list[dict[str, Any]]:
        """Return the rows in the order of the files; of those not reached yet there are none."""
        failed = {
            number: {"file": str(self.files[number]), "error": reason} for number, reason in self._failures.items()
        }
        known = self._rows | failed
        return [known[number] for number in sorted(known)]

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(next(iter(self._rows.values()))))
        writer.writeheader()
        writer.writerows(self._all())
        return text.getvalue()

    def _json(self) -> str:
        return json.dumps(self._all(), indent=2, allow_nan=False) + "\n"


def distinct_names(files: Sequence[Path]) -> list[str]:
    """Return names that tell files apart: their own, or their paths below the folder that holds them all."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    places = [os.path.abspath(file) for file in files]
    common = os.path.commonpath(places)
    return [os.path.relpath(place, common) for place in places]
