"""Labelled pictures as people have them: a folder per class, or a table of files. Nothing is decoded here."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from msf.data.masks import MaskFolder
from msf.data.picture_files import ImageSearch
from msf.plain_values import shown, shown_names

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_COLUMNS = {
    "file": ("file", "path", "filename", "image"),
    "label": ("label", "class"),
    "split": ("split",),
    "group": ("group", "patient", "patient_id"),
    "mask": ("mask",),
}
_DELIMITERS = (",", ";", "\t")
_N_LISTED = 12
_BATCH_ROWS = 4096
_UNLABELLED = "lies in no class folder"


class Entry(NamedTuple):
    """One picture of a source.

    Args:
        file: Its path.
        label: Its class as the source says; None: it says none.
        split: `train`, `val` or `test` where the source says so.
        group: What it shares with others, such as the patient; None where the source does not say.
        error: What is wrong with it, so far.
        mask: The file with the classes of its pixels, where these have them.
        details: Further columns of its table, in the order of `Source.details`.
    """

    file: str
    label: str | None = None
    split: str | None = None
    group: str | None = None
    error: str | None = None
    details: tuple[str, ...] = ()
    mask: str | None = None


@dataclass(frozen=True)
class Source:
    """A folder or a table that was looked at, and can be read once or more.

    Args:
        path: Folder or table.
        details: Names of further columns.
        has_splits: Whether it says which picture belongs to which split.
        has_groups: Whether it names groups.
        columns: The table's own names of `file`, `label`, `split`, `group` and `mask`, where it has them.
        masks: Folder of the masks of a folder of pictures, where pixels have classes.
        skipped: What a search of folders left out: kind and number; complete once the entries were read.
    """

    path: Path
    details: tuple[str, ...] = ()
    has_splits: bool = False
    has_groups: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    masks: Path | None = None
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def has_masks(self) -> bool:
        """Whether it has a mask per picture, instead of a class."""
        return self.masks is not None or "mask" in self.columns

    def entries(self) -> Iterator[Entry]:
        """Yield the pictures: of a folder in the order of names, of a table in its own.

        Raises:
            ValueError: A table that cannot be read on; a folder that is no longer there.
        """
        if self.masks is not None:
            return _masked_entries(self, MaskFolder(self.masks))
        return _folder_entries(self) if self.path.is_dir() else _table_entries(self)


def is_source(path: str | os.PathLike[str]) -> bool:
    """Return whether this is a folder, or has the suffix of a table."""
    place = Path(path).expanduser()
    return bool(os.fspath(path)) and (place.suffix.lower() in TABLE_SUFFIXES or place.is_dir())


def open_source(
    path: str | os.PathLike[str],
    columns: Mapping[str, str | None] | None = None,
    *,
    needs_labels: bool = True,
    masks: str | os.PathLike[str] | None = None,
) -> Source:
    """Look at a folder or a table, without reading on.

    A folder holds one folder per class, or `train`, `val` and `test` with those; deeper folders belong to their class.
    A table (CSV with `,`, `;` or tabs in UTF-8, or Parquet) has one row per picture, with columns for file and label,
    and where it has them split and group. Its paths are relative to the table's folder, or absolute. Instead of a class
    a picture may have a mask, with a class per pixel: a file at the same place in the folder `masks`, whatever the
    suffix, or in the column `mask` of a table without labels.

    Args:
        path: Folder or table.
        columns: Names of the columns for `file`, `label`, `split`, `group`; what is not given is looked for under the
            usual names.
        needs_labels: Whether there must be classes.
        masks: Folder of the masks of a folder of pictures.

    Raises:
        FileNotFoundError: There is nothing, or no masks.
        ValueError: A table without the columns, twice with one name, in another encoding, or a Parquet file without
            the package pyarrow; a folder without class folders.
    """
    place = Path(path).expanduser()
    wanted = {name: given for name, given in (columns or {}).items() if given is not None}
    if masks is not None:
        return _masked_folder(place, Path(masks).expanduser(), wanted)
    if place.is_dir():
        if wanted:
            raise ValueError(f"columns are of a table; {str(place)!r} is a folder (columns {', '.join(wanted)})")
        folders = _subfolders(place)
        if needs_labels and not folders:
            raise ValueError(
                f"{str(place)!r} must hold a folder of pictures per class (or train, val and test with those); "
                "it holds no folder"
            )
        return Source(place, has_splits=bool(folders) and {name.casefold() for name in folders} <= SPLIT_NAMES.keys())
    if not place.is_file():
        raise FileNotFoundError(f"{str(place)!r} does not exist: a folder, or a table ({', '.join(TABLE_SUFFIXES)})")
    names = _parquet_names(place) if place.suffix.lower() == ".parquet" else _csv_names(place)
    found = _find_columns(place, names, wanted, needs_labels)
    details = tuple(name for name in names if name not in found.values())
    return Source(place, details, "split" in found, "group" in found, found)


def table_files(path: Path) -> Iterator[Path]:
    """Yield the files that a table names, for whoever wants pictures without their labels.

    Raises:
        FileNotFoundError: See `open_source`.
        ValueError: Likewise.
    """
    for entry in open_source(path, needs_labels=False).entries():
        yield Path(entry.file)


def _masked_folder(place: Path, masks: Path, wanted: Mapping[str, str]) -> Source:
    if wanted or not place.is_dir():
        raise ValueError(
            f"masks is the folder of the masks of a folder of pictures; {str(place)!r} is none (a table names them in "
            "its column mask)"
        )
    MaskFolder(masks)
    pictures, inner = (os.path.realpath(folder) for folder in (place, masks))
    if os.path.commonpath([pictures, inner]) in (pictures, inner):
        raise ValueError(f"masks must lie beside the pictures; got {str(masks)!r} for those of {str(place)!r}")
    folders = _subfolders(place)
    has_splits = bool(folders) and {name.casefold() for name in folders} <= SPLIT_NAMES.keys()
    return Source(place, has_splits=has_splits, masks=masks)


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _folder_entries(source: Source) -> Iterator[Entry]:
    search = ImageSearch()
    roots: list[tuple[Path, str | None]] = [(source.path, None)]
    if source.has_splits:
        roots = [(source.path / name, SPLIT_NAMES[name.casefold()]) for name in _subfolders(source.path)]
    for root, split in roots:
        with os.scandir(root) as listed:
            loose = sorted(entry.path for entry in listed if not entry.is_dir())
        for file in loose:
            for name, failure in search.found([Path(file)]) if _is_picture(file) else ():
                yield Entry(name, split=split, error=failure or f"{name!r} {_UNLABELLED}")
        for label in _subfolders(root):
            for name, failure in search.found([root / label]):
                yield Entry(name, label, split, None, failure)
    source.skipped.update(search.skipped)


def _masked_entries(source: Source, masks: MaskFolder) -> Iterator[Entry]:
    search = ImageSearch()
    for name, failure in search.found([source.path]):
        top = os.path.relpath(name, source.path).split(os.sep)[0]
        split = SPLIT_NAMES.get(top.casefold()) if source.has_splits else None
        mask, error = masks.of(name, source.path) if failure is None else (None, failure)
        yield Entry(name, split=split, error=error, mask=mask)
    source.skipped.update(search.skipped)


def _is_picture(file: str) -> bool:
    from msf.data.dicom import DICOM_SUFFIXES
    from msf.data.picture_files import readable_suffixes

    suffix = os.path.splitext(file)[1].lower()
    return suffix in readable_suffixes() or suffix in DICOM_SUFFIXES


def _table_entries(source: Source) -> Iterator[Entry]:
    is_parquet = source.path.suffix.lower() == ".parquet"
    names = [*source.columns.values(), *source.details]
    rows = _parquet_rows(source.path, names) if is_parquet else _csv_rows(source.path, names)
    roles, n_roles = tuple(source.columns), len(source.columns)
    folder = source.path.parent
    seen: dict[str, int] = {}
    labels: list[str | None] = []  # interned, as are groups: a table of a million rows names a few
    for number, values in enumerate(rows, start=1):
        row = dict(zip(roles, values, strict=False))
        label, split, group = (sys.intern(row[name]) if row.get(name) else None for name in ("label", "split", "group"))
        labels.append(label)
        details = tuple(values[n_roles:])
        if not row["file"]:
            yield Entry("", label, None, group, f"row {number} of {str(source.path)!r} names no file", details)
            continue
        file, error = os.path.normpath(os.path.join(folder, row["file"])), None
        if file in seen:
            two = "" if labels[seen[file] - 1] == label else ", with two labels"
            error = f"{file!r} is named twice, in rows {seen[file]} and {number}{two}"
        elif "label" in roles and label is None:
            error = f"{file!r} has no label (row {number} of {str(source.path)!r})"
        elif "mask" in roles and not row["mask"]:
            error = f"{file!r} has no mask (row {number} of {str(source.path)!r})"
        seen.setdefault(file, number)
        if split is not None:
            split, given = SPLIT_NAMES.get(split.casefold()), split
            if split is None:
                raise ValueError(
                    f"split must be train, val or test; row {number} of {str(source.path)!r} says {shown(given)}"
                )
        mask = os.path.normpath(os.path.join(folder, row["mask"])) if row.get("mask") else None
        yield Entry(file, label, split, group, error, details, mask)


def _find_columns(path: Path, names: Sequence[str], wanted: Mapping[str, str], needs_labels: bool) -> dict[str, str]:
    folded = [name.strip().casefold() for name in names]
    listed = shown_names(names, _N_LISTED) or "none"
    twice = {name for name in folded if folded.count(name) > 1}
    if twice:
        raise ValueError(f"{str(path)!r} must name each column once; it has {shown_names(sorted(twice), 4)} twice")
    found: dict[str, str] = {}
    for role, usual in _COLUMNS.items():
        if role == "mask" and role not in wanted and "label" in found:
            continue  # a further column
        is_needed = role == "file" or (role == "mask" and needs_labels and "label" not in found)
        candidates = (wanted[role].strip().casefold(),) if role in wanted else usual
        there = [
            name for candidate in candidates for name, known in zip(names, folded, strict=True) if known == candidate
        ]
        if len(there) > 1:
            raise ValueError(
                f"{str(path)!r} has {shown_names(there, 4)}: say which of them is the {role} with --{role}-column"
            )
        if there:
            found[role] = there[0]
        elif role in wanted or is_needed:
            asked = "label" if role == "mask" and role not in wanted else role
            usual = candidates if asked == role else _COLUMNS[asked]
            raise ValueError(
                f"{str(path)!r} must have a column for the {asked} ({' or '.join(usual)}; --{asked}-column names "
                f"another); its columns are {listed}"
            )
    if "mask" in found and found.pop("label", None) is not None and "label" in wanted:
        raise ValueError(f"{str(path)!r} must have labels or masks; columns of both were named")
    return found


def _csv_names(path: Path) -> list[str]:
    with _csv_file(path) as file:
        header = file.readline()
    if not header.strip():
        raise ValueError(f"{str(path)!r} must begin with the names of its columns; its first line is empty")
    return next(csv.reader([header], delimiter=_delimiter(header)))


def _csv_rows(path: Path, names: Sequence[str]) -> Iterator[list[str]]:
    with _csv_file(path) as file:
        header = file.readline()
        columns = next(csv.reader([header], delimiter=_delimiter(header)))
        places = [columns.index(name) for name in names]
        reader = csv.reader(file, delimiter=_delimiter(header), strict=True)
        for number, row in enumerate(reader, start=1):
            if not row:
                continue
            if len(row) != len(columns):
                raise ValueError(
                    f"row {number} of {str(path)!r} must have {len(columns)} cells, one per column; it has {len(row)}"
                )
            yield [row[place].strip() for place in places]


@contextmanager
def _csv_file(path: Path) -> Iterator[TextIO]:
    """Open a table as UTF-8, and tell in one line what is wrong with its text."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{str(path)!r} must be UTF-8: save it as such, or convert it, as with 'iconv -f latin1 -t utf-8'"
            ) from error
        except csv.Error as error:
            raise ValueError(f"{str(path)!r} cannot be read as CSV: {error}") from error


def _delimiter(header: str) -> str:
    """Return the one of `,`, `;` and tab that parts the names of the columns: the most frequent one."""
    return max(_DELIMITERS, key=header.count)


def _parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(
            f"Parquet tables are read with the extra parquet: pip install 'medsymmflow[parquet]', or save "
            f"{str(path)!r} as CSV"
        ) from None
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own are among them
        raise ValueError(f"{str(path)!r} cannot be read as a Parquet table") from error


def _parquet_names(path: Path) -> list[str]:
    with _parquet(path) as table:
        return list(table.schema_arrow.names)


def _parquet_rows(path: Path, names: Sequence[str]) -> Iterator[list[str]]:
    with _parquet(path) as table:
        for batch in table.iter_batches(_BATCH_ROWS, columns=list(names)):
            columns = [batch.column(name).to_pylist() for name in names]
            for values in zip(*columns, strict=True):
                yield [_text(value) for value in values]


def _text(value: object) -> str:
    if value is None or value != value:  # NaN is what pandas writes for nothing
        return ""
    if isinstance(value, float) and value.is_integer():  # a column of numbers with gaps
        with suppress(OverflowError):
            return str(int(value))
    return str(value).strip()
