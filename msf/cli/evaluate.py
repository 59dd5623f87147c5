"""`msf evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow
from msf.cli.per_image import check_table, image_rows, write_table
from msf.cli.sources import DatasetFlags, open_dataset
from msf.cli.targets import check_apart

if TYPE_CHECKING:
    from msf.data import ImageDataset
    from msf.medsymmflow import MedSymmFlow

FORMAT = "msf-evaluate/1"
Split = Literal["train", "val", "test"]


@flags.grouped
def evaluate(
    *,
    checkpoint: flags.Checkpoint = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Data set name, path of an .npz, or a folder or table of pictures. Default: the one the network was "
            "trained on."
        ),
    ] = None,
    split: Annotated[Split, typer.Option(help="Split to judge on.")] = "test",
    per_image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a row per picture; .csv, or .parquet with the extra parquet."),
    ] = None,
    packing: DatasetFlags,
    fields: flags.ClassifyFields,
    run: flags.Run,
) -> None:
    """Measure accuracy, calibration and selective prediction on one split.

    Settings that are not given are those the network was trained with. Choose settings on val; report test once.
    """
    from msf.config import settings_for
    from msf.evaluate import evaluate_split
    from msf.judge.metrics import HEADLINES
    from msf.judge.per_class import per_class_metrics
    from msf.provenance import provenance

    check_table(per_image)
    network = load_flow(checkpoint, run.device)
    data = _open(network, dataset, split, packing)
    check_apart(
        {"--json": run.json_file, "--per-image": per_image},
        [*files_of(checkpoint), *([data.path] if data.path else [])],
    )
    with console.progress_bar(f"classifying {data.name} {split}", lines=True) as advance:
        metrics, prediction = evaluate_split(network, data, split, seed=run.seed, progress=advance, **fields)
    settings = settings_for("evaluate", network.config.inference.classify, None, fields)
    made_with = provenance(network, settings, seed=run.seed, micro_batch=prediction.micro_batch)
    labels, names = data.split(split).labels, data.class_names
    console.print_figures(
        f"{data.name}, {split}",
        {
            name: metrics[name]
            for name in (*HEADLINES, "readout", "nfe", "precision", "convolution", "micro_batch", "samples_per_second")
        },
    )
    of_classes = per_class_metrics(prediction, labels, names, seed=run.seed)
    _show_classes(of_classes)
    for warning in metrics["warnings"]:
        console.err.print(f"note: {console.printable(warning)}")
    source = {"dataset": data.name, "dataset_sha256": data.fingerprint, "split": split}
    if per_image is not None:
        write_table(per_image, image_rows(prediction, labels, names, {**source, **made_with}, data))
    content: dict[str, Any] = {"format": FORMAT, **metrics, "dataset_sha256": data.fingerprint, **of_classes}
    console.write_json(run.json_file, {**content, "provenance": made_with})


def _open(network: MedSymmFlow, name: str | None, split: Split, packing: DatasetFlags) -> ImageDataset:
    names = network.task.class_names
    with console.progress_bar("reading pictures", lines=True) as advance:
        return open_dataset(
            network.config.data.dataset if name is None else name,
            packing,
            advance,
            size=network.config.data.image_size,
            required=(split,),
            mode="grey" if network.task.image_channels == 1 else "colour",
            known_names=() if all(name.isdecimal() for name in names) else names,
        )


def _show_classes(figures: dict[str, Any]) -> None:
    def cell(interval: dict[str, float | None]) -> str:
        value, low, high = (console.shown(interval[name], 3) for name in ("value", "low", "high"))
        return value if low == "-" else f"{value} ({low} to {high})"

    kinds = ("recall", "specificity", "auc")
    rows = [[entry["class"], str(entry["n"]), *(cell(entry[kind]) for kind in kinds)] for entry in figures["per_class"]]
    level = f"{figures['intervals']['level']:.0%}"
    console.print_table([["class", "n", *kinds], *rows], title=f"\nPer class, with intervals of {level}")
