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
from msf.config import FlowName, MethodName

SHOWN = 30  # rows printed; files hold all


def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files, or folders of them.")],
    *,
    checkpoint: flags.Checkpoint = None,
    n_samples: Annotated[int | None, typer.Option(min=1, help="Noise draws per picture.")] = None,
    n_steps: Annotated[int | None, typer.Option(min=1, help="Solver steps.")] = None,
    method: Annotated[MethodName | None, typer.Option(help="Solver.")] = None,
    flow: Annotated[FlowName | None, typer.Option(help="Flow that classifies.")] = None,
    readout: flags.Readout = None,
    refer: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the pictures, the most uncertain ones, to refer to a person.")
    ] = 0.0,
    score: Annotated[str, typer.Option(help="Uncertainty score that ranks them.")] = "nearest_distance",
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write one row per picture.")] = None,
    seed: flags.Seed = 0,
    device: flags.Device = None,
    micro_batch: flags.MicroBatch = None,
    json_file: flags.JsonFile = None,
) -> None:
    """Classify pictures, with probabilities, distances and uncertainty for each.

    Not for clinical use.
    """
    import torch

    from msf.cli.images import find_images, read_image
    from msf.data import prepare_images
    from msf.uncertainty import UNCERTAINTY_SCORES

    if score not in UNCERTAINTY_SCORES:
        raise ValueError(f"score must be one of {', '.join(UNCERTAINTY_SCORES)}; got {score!r}")
    files = find_images(images)
    network = load_flow(checkpoint, device)
    channels, size = network.task.image_channels, network.config.data.image_size
    prepared = [prepare_images(read_image(file, channels)[None], size, channels) for file in files]
    inference = network.config.inference
    with console.progress_bar("classifying") as advance:
        prediction = network.classify(
            torch.cat(prepared),
            n_samples=n_samples or inference.n_samples,
            n_steps=n_steps or inference.classify_steps,
            method=method or inference.classify_method,
            flow=flow or inference.flow,
            readout=readout,
            seed=seed,
            micro_batch=micro_batch,
            progress=advance,
        )
    uncertainty = prediction.scores()[score].cpu()
    n_referred = round(refer * len(files))
    referred = set(uncertainty.sort(descending=True, stable=True).indices[:n_referred].tolist())
    rows: list[dict[str, Any]] = [
        {"file": str(file), **row, "is_referred": index in referred}
        for index, (file, row) in enumerate(zip(files, prediction.to_rows(network.task.class_names), strict=True))
    ]
    _print_rows(rows, score, uncertainty.tolist())
    if csv_file is not None:
        _write_csv(csv_file, rows)
    console.write_json(json_file, rows)


def _print_rows(rows: list[dict[str, Any]], score: str, uncertainty: list[float]) -> None:
    table = Table("picture", "label", "probability", score, "decision", box=None, pad_edge=False)
    for row, value in list(zip(rows, uncertainty, strict=True))[:SHOWN]:
        name = row["label_name"]
        decision = "refer to a person" if row["is_referred"] else "accept"
        table.add_row(Path(row["file"]).name, name, f"{row[f'probability_{name}']:.3f}", f"{value:.4f}", decision)
    console.out.print(table)
    if len(rows) > SHOWN:
        console.out.print(f"... and {len(rows) - SHOWN} more (all of them with --csv or --json)")


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    from msf.atomic import write_atomically

    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8", newline=""))
