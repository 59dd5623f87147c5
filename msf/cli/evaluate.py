"""`msf evaluate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow, named_checkpoint
from msf.cli.per_image import check_table, image_rows, write_table
from msf.cli.sources import DatasetFlags, open_dataset
from msf.cli.targets import check_apart

if TYPE_CHECKING:
    from torch import Tensor

    from msf.config import ClassifySettings
    from msf.data import ImageDataset
    from msf.judge.resampling import Resamples
    from msf.judge.uncertainty import Prediction
    from msf.medsymmflow import MedSymmFlow

FORMAT = "msf-evaluate/1"
FORMAT_OF_PIXELS = "msf-evaluate-pixels/1"
_OF_PIXELS = ("n_pixels", "n_pixels_judged", "pixel_accuracy", "mean_iou", "mean_dice")
Split = Literal["train", "val", "test"]


@flags.grouped
def evaluate(
    *,
    checkpoint: flags.Checkpoint = None,
    dataset: flags.Pictures = None,
    split: Annotated[Split, typer.Option(help="Split to judge on.")] = "test",
    ood: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="Another data set, path of an .npz, or folder or table of pictures: how well the scores tell its "
            "pictures from those of the split.",
        ),
    ] = None,
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
    from msf.calibrate import made_with as made_for
    from msf.config import settings_for
    from msf.data import picture_groups
    from msf.evaluate import evaluate_split, working_labels
    from msf.judge.intervals import metric_intervals
    from msf.judge.metrics import HEADLINES
    from msf.judge.per_class import per_class_metrics
    from msf.judge.resampling import N_RESAMPLES, Resamples
    from msf.judge.segmentation import segmentation_classes
    from msf.provenance import provenance

    check_table(per_image)
    folder = named_checkpoint(checkpoint)
    network = load_flow(folder, run.device, of_pixels=True)
    if network.task.is_per_pixel and not (per_image is None and ood is None):
        raise ValueError("per-image and ood are about whole pictures, and this network gives every pixel a class")
    data = open_for(network, dataset, split, packing)
    foreign = None if ood is None else _open_foreign(network, ood, split, packing)
    check_apart(
        {"--json": run.json_file, "--per-image": per_image},
        [*files_of(folder), *(found.path for found in (data, foreign) if found is not None and found.path)],
    )
    with console.progress_bar(f"classifying {data.name} {split}", lines=True) as advance:
        metrics, prediction = evaluate_split(network, data, split, seed=run.seed, progress=advance, **fields)
    settings = settings_for("evaluate", network.config.inference.classify, None, fields)
    made_with = provenance(network, settings, seed=run.seed, micro_batch=prediction.micro_batch)
    labels, names = working_labels(network, data.split(split)), data.class_names
    headlines = (*(_OF_PIXELS if data.is_per_pixel else ()), *HEADLINES)
    console.print_figures(
        f"{data.name}, {split}",
        {
            name: metrics[name]
            for name in (*headlines, "readout", "nfe", "precision", "convolution", "micro_batch", "samples_per_second")
        },
    )
    resamples = Resamples(len(data.split(split)), N_RESAMPLES, run.seed, picture_groups(data, split))
    figures_of = segmentation_classes if data.is_per_pixel else per_class_metrics
    content: dict[str, Any] = {
        "format": FORMAT_OF_PIXELS if data.is_per_pixel else FORMAT,
        **metrics,
        "dataset_sha256": data.fingerprint,
        **figures_of(prediction, labels, names, resamples),
        "intervals": resamples.described(),
    }
    _show_classes(content)
    if not data.is_per_pixel:
        content |= metric_intervals(prediction, labels, resamples)
        _show_scores(content["score_intervals"])
        content |= calibrated_decisions(
            folder, made_for(network, settings), (data.fingerprint, split), prediction, labels
        )
    if foreign is not None:
        content["ood"] = _detection(network, foreign, (split, settings), run.seed, prediction, resamples)
    for warning in metrics["warnings"]:
        console.err.print(f"note: {console.printable(warning)}")
    source = {"dataset": data.name, "dataset_sha256": data.fingerprint, "split": split}
    if per_image is not None:
        write_table(per_image, image_rows(prediction, labels, names, {**source, **made_with}, data))
    console.write_json(run.json_file, {**content, "provenance": made_with})


def open_for(network: MedSymmFlow, name: str | None, split: str, packing: DatasetFlags) -> ImageDataset:
    """Return a data set by name, or the one that the network was trained on, with a split that holds pictures."""
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


def _open_foreign(network: MedSymmFlow, name: str, split: str, packing: DatasetFlags) -> ImageDataset:
    """Return a data set whose classes do not matter."""
    with console.progress_bar("reading other pictures", lines=True) as advance:
        return open_dataset(
            name,
            dataclasses.replace(packing, class_names=None),
            advance,
            size=network.config.data.image_size,
            required=(split,),
            mode="grey" if network.task.image_channels == 1 else "colour",
        )


def calibrated_decisions(
    folder: str, made_with: dict[str, Any], on: tuple[str, str], prediction: Prediction, labels: Tensor
) -> dict[str, Any]:
    """Return what the calibration beside the checkpoint comes to here, if there is one for these settings.

    Args:
        folder: Of the checkpoint.
        made_with: What `msf.calibrate.made_with` returns for the prediction.
        on: Fingerprint of the data set, and the split.
        prediction: Of its pictures.
        labels: True classes; [N], int64.
    """
    from msf.calibrate import load_calibration
    from msf.judge.decisions import decision_outcomes

    try:
        calibration = load_calibration(folder)
        calibration.require_same(made_with)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        console.err.print(f"note: decisions are not judged: {console.printable(str(error))}")
        return {}
    if on == (calibration.computed_on["dataset_sha256"], calibration.computed_on["split"]):
        console.err.print("note: these pictures were calibrated on: what decisions come to here proves nothing")
    found = decision_outcomes(calibration, prediction, labels)
    rows = [["calibrated for", "comes to here"]]
    for entry in found["referral"]:
        rate = console.shown(entry["error_rate"])
        rows.append([f"risk {entry['risk']:g}", f"{rate} among {entry['coverage']:.1%} that are kept"])
    for entry in found["sets"]:
        rows.append([f"sets of {entry['level']:g}", f"{entry['coverage']:.3f}, {entry['mean_size']:.2f} classes each"])
    console.print_table(rows, title="\nDecisions")
    return {"decisions": {**found, "digest": calibration.digest}}


def _detection(
    network: MedSymmFlow,
    foreign: ImageDataset,
    how: tuple[str, ClassifySettings],
    seed: int,
    prediction: Prediction,
    resamples: Resamples,
) -> dict[str, Any]:
    """Classify other pictures, and return how well each score tells them from those of the split."""
    from msf.judge.detection import detection_metrics
    from msf.judge.resampling import N_RESAMPLES, Resamples

    split, settings = how
    images = foreign.split(split).images
    with console.progress_bar(f"classifying {foreign.name} {split}", lines=True) as advance:
        others = network.classify(images, settings, seed=seed, progress=advance)
    scores = detection_metrics(prediction, others, resamples, Resamples(len(images), N_RESAMPLES, seed + 1))
    rows = [[name, _cell(entry["auroc"]), _cell(entry["fpr95"])] for name, entry in scores.items()]
    console.print_table([["score", "auroc", "fpr95"], *rows], title=f"\nPictures of {foreign.name} told from others")
    return {
        "dataset": foreign.name,
        "dataset_sha256": foreign.fingerprint,
        "split": split,
        "n_images": len(images),
        "scores": scores,
    }


def _cell(interval: Mapping[str, float | None]) -> str:
    value, low, high = (console.shown(interval[name], 3) for name in ("value", "low", "high"))
    return value if low == "-" else f"{value} ({low} to {high})"


def _show_classes(figures: dict[str, Any]) -> None:
    kinds = [kind for kind in ("iou", "dice", "recall", "specificity", "auc") if kind in figures["per_class"][0]]
    level = figures["intervals"]["level"]
    rows = [
        [entry["class"], str(entry["n"]), *(_cell(entry[kind]) for kind in kinds)] for entry in figures["per_class"]
    ]
    console.print_table([["class", "n", *kinds], *rows], title=f"\nPer class, with intervals of {level:.0%}")


def _show_scores(scores: dict[str, Any]) -> None:
    kinds = ("aurc", "error_auroc", "accuracy_at_0.8", "coverage_at_0.05")
    rows = [[name, *(_cell(entry[kind]) for kind in kinds)] for name, entry in scores.items()]
    console.print_table([["score", *kinds], *rows], title="\nUncertainty scores")
