"""`msf classify`."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from msf.cli import console, flags
from msf.cli.checkpoints import load_flow
from msf.config import FitName

SHOWN = 30  # rows printed; files hold all
_PART_BYTES = 1 << 30  # prepared pictures that exist at once


@flags.grouped
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files, or folders of them.")],
    *,
    checkpoint: flags.Checkpoint = None,
    refer: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures, the most uncertain ones, to refer to a person.")
    ] = 0.0,
    score: Annotated[str, typer.Option(help="Uncertainty score that ranks them.")] = "nearest_distance",
    fit: Annotated[
        FitName,
        typer.Option(
            help="What becomes of a picture that is not square: stretch it, or crop it to its central square."
        ),
    ] = "stretch",
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write one row per picture.")] = None,
    fields: flags.ClassifyFields,
    run: flags.Run,
) -> None:
    """Classify pictures, with probabilities, distances and uncertainty for each.

    Pictures may have any size and mode. One that cannot be read is named, and the others are classified; the exit code
    is then 1. Not for clinical use.
    """
    from msf.data import find_images, load_pictures
    from msf.judge.uncertainty import UNCERTAINTY_SCORES

    if score not in UNCERTAINTY_SCORES:
        raise ValueError(f"score must be one of {', '.join(UNCERTAINTY_SCORES)}; got {score!r}")
    files = find_images(images)
    network = load_flow(checkpoint, run.device)
    channels, size = network.task.image_channels, network.config.data.image_size
    rows: list[dict[str, Any]] = [{"file": str(file), "error": None} for file in files]
    uncertainty: dict[int, float] = {}
    per_part = max(1, _PART_BYTES // (4 * channels * size**2))
    with console.progress_bar("classifying") as advance:
        for first in range(0, len(files), per_part):
            part = load_pictures(files[first : first + per_part], size, channels, fit=fit)
            for row, reason in part.failures.items():
                rows[first + row]["error"] = reason
            if not part.rows:
                continue
            prediction = network.classify(part.images, seed=run.seed, progress=advance, **fields)
            # One for all parts, so that no picture depends on how they were cut.
            fields["micro_batch"] = prediction.micro_batch
            described = prediction.to_rows(network.task.class_names)
            scores = prediction.scores()[score].tolist()
            for row, values, value in zip(part.rows, described, scores, strict=True):
                rows[first + row] |= {**values, "index": first + row}
                uncertainty[first + row] = value
    broken = [row["error"] for row in rows if row["error"] is not None]
    if not uncertainty:
        raise ValueError(f"none of {len(files)} pictures could be read; {broken[0]}")
    ranked = sorted(uncertainty, key=lambda index: -uncertainty[index])  # stable
    referred = set(ranked[: round(refer * len(ranked))])
    for index in uncertainty:
        rows[index]["is_referred"] = index in referred
    _print_rows([rows[index] for index in uncertainty], score, list(uncertainty.values()))
    if csv_file is not None:
        _write_csv(csv_file, rows, list(rows[next(iter(uncertainty))]))
    console.write_json(run.json_file, rows)
    for reason in broken:
        console.err.print(f"msf: not classified: {reason}")
    if broken:
        raise typer.Exit(1)


def _print_rows(rows: list[dict[str, Any]], score: str, uncertainty: list[float]) -> None:
    table = Table("picture", "label", "probability", score, "decision", box=None, pad_edge=False)
    for row, value in list(zip(rows, uncertainty, strict=True))[:SHOWN]:
        name = row["label_name"]
        decision = "refer to a person" if row["is_referred"] else "accept"
        table.add_row(Path(row["file"]).name, name, f"{row[f'probability_{name}']:.3f}", f"{value:.4f}", decision)
    console.out.print(table)
    if len(rows) > SHOWN:
        console.out.print(f"... and {len(rows) - SHOWN} more (all of them with --csv or --json)")


def _write_csv(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    from msf.files.atomic import write_atomically

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8", newline=""))
