"""One row per picture of an evaluation, as a table in CSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msf.cli.targets import write_result, write_result_file

if TYPE_CHECKING:
    from torch import Tensor

    from msf.data import ImageDataset
    from msf.judge.uncertainty import Prediction

_SUFFIXES = (".csv", ".parquet")


def check_table(path: Path | None) -> None:
    """Refuse a table that cannot be written, before any work is done for it.

    Raises:
        ValueError: Another suffix, or Parquet without the package pyarrow.
    """
    if path is None:
        return
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"per-image must be a file ending in {' or '.join(_SUFFIXES)}; got {str(path)!r}")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401 - tried here, used at the end
        except ImportError:
            raise ValueError(
                "Parquet tables are written with the extra parquet: pip install 'medsymmflow[parquet]', or give .csv"
            ) from None


def image_rows(
    prediction: Prediction,
    labels: Tensor,
    class_names: Sequence[str],
    made_with: Mapping[str, Any],
    dataset: ImageDataset,
) -> list[dict[str, Any]]:
    """Return the rows: the picture, its true class, what was decided, probabilities, scores, what it was made with.

    Args:
        prediction: Of the pictures of a split.
        labels: Their classes.
        class_names: Of the data set.
        made_with: Data set, split and provenance, the same in all rows.
        dataset: Names of files are read from the rows that `msf pack` wrote beside it, where they are still its own.
    """
    from msf.data import packed_rows
    from msf.provenance import flat_provenance

    scores = {f"score_{name}": values.tolist() for name, values in prediction.scores().items()}
    constant = flat_provenance(dict(made_with))
    files = [row["file"] for row in packed_rows(dataset, made_with["split"])]
    rows = []
    for number, (row, label) in enumerate(zip(prediction.to_rows(tuple(class_names)), labels.tolist(), strict=True)):
        own = {
            "index": number,
            **({"file": files[number]} if files else {}),
            "true_label": label,
            "true_label_name": class_names[label],
            "is_correct": row["label"] == label,
        }
        of_scores = {name: values[number] for name, values in scores.items()}
        rest = {name: value for name, value in constant.items() if name not in row}
        rows.append({**own, **row, **of_scores, **rest})
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same columns, as a whole or not at all.

    Raises:
        OSError: They could not be written; the text says where they are kept.
    """
    if path.suffix == ".parquet":
        write_result_file(path, lambda place: _write_parquet(place, rows))
    else:
        write_result(path, lambda: csv_lines(list(rows[0]), rows))


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table in CSV, line by line; a column that a row lacks is empty there."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns)
    writer.writeheader()
    for row in rows:
        writer.writerow(row)
        yield text.getvalue()
        text.seek(0)
        text.truncate()
