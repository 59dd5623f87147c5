"""`msf report`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow, named_checkpoint
from msf.cli.evaluate import FORMAT, Split, calibrated_decisions, open_for
from msf.cli.sources import DatasetFlags
from msf.cli.targets import check_apart, check_target, write_result

if TYPE_CHECKING:
    from msf.config import PrecisionName
    from msf.data import ImageDataset
    from msf.evaluate import Evaluation
    from msf.medsymmflow import MedSymmFlow
    from msf.report.findings import Findings

N_GENERATED = 6
_MOST_CLASSES = 16  # more are shown without generated pictures unless they are asked for


@dataclass(frozen=True)
class Shown:
    """What the page shows."""

    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SOURCE",
            help="Data set name, path of an .npz, or a folder or table of pictures. Default: the one the network was "
            "trained on.",
        ),
    ] = None
    split: Annotated[Split, typer.Option(help="Split to report on; the page says which.")] = "test"
    score: Annotated[
        str | None,
        typer.Option(
            help="Uncertainty score that ranks the pictures shown. Default: least_confidence where the code gives "
            "probabilities, else margin."
        ),
    ] = None
    generated: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=64,
            help=f"Generated pictures per class; 0: none. Default: {N_GENERATED}, or 0 for more than {_MOST_CLASSES} "
            "classes.",
        ),
    ] = None


@flags.grouped
def report(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]", help="Folder of a trained network, or its hub id. Default: the newest one under runs/."
        ),
    ] = None,
    *,
    shown: Shown,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("report.html"),
    packing: DatasetFlags,
    fields: flags.ClassifyFields,
    run: flags.Run,
) -> None:
    """Write a page on what to trust: one HTML file with its pictures, that asks nothing of a network.

    Accuracy, what referral brings by every score, calibration, confusions, the surest errors, the least sure pictures,
    generated pictures, cost and provenance. Choose settings on val; report test once. Not for clinical use.
    """
    from msf.calibrate import made_with
    from msf.config import settings_for
    from msf.evaluate import evaluate_split
    from msf.judge.uncertainty import check_score
    from msf.report.page import report_page

    if shown.score is not None:
        check_score(shown.score)
    check_target(out)
    folder = named_checkpoint(checkpoint)
    network = load_flow(folder, run.device)
    data = open_for(network, shown.data, shown.split, packing)
    check_apart({"--out": out, "--json": run.json_file}, [*files_of(folder), *([data.path] if data.path else [])])
    n_generated = shown.generated
    if n_generated is None:
        n_generated = N_GENERATED if data.n_classes <= _MOST_CLASSES else 0
    with console.progress_bar(f"classifying {data.name} {shown.split}", lines=True) as advance:
        evaluation = evaluate_split(network, data, shown.split, seed=run.seed, progress=advance, **fields)
        generated = generated_pictures(network, data, n_generated, run.seed, fields["precision"], advance)
    settings = settings_for("evaluate", network.config.inference.classify, None, fields)
    labels = data.split(shown.split).labels
    made_on = data.fingerprint, shown.split
    decided = calibrated_decisions(folder, made_with(network, settings), made_on, evaluation.prediction, labels)
    found = findings(
        network, data, evaluation, fields,
        ranked_by=shown.score, seed=run.seed, generated=generated, decisions=decided.get("decisions", {}),
        is_foreign=shown.data not in (None, network.config.data.dataset),
    )  # fmt: skip
    write_result(out, report_page(found))
    for warning in evaluation.metrics["warnings"]:
        console.err.print(f"note: {console.printable(warning)}")
    console.out.print(f"open {console.printable(str(out))}")
    if run.json_file is not None:
        console.write_json(
            run.json_file,
            {
                "format": FORMAT,
                **evaluation.metrics,
                "dataset_sha256": data.fingerprint,
                **found.of_classes,
                **found.intervals,
                **decided,
                "provenance": found.made_with,
            },
        )


def findings(
    network: MedSymmFlow, data: ImageDataset, evaluation: Evaluation, fields: dict[str, Any], **others: Any
) -> Findings:
    """Return what the page shows of an evaluation, with what it was made with.

    Args:
        network: The network.
        data: What it classified.
        evaluation: What came of it.
        fields: Settings that differed from the checkpoint's.
        **others: Further fields of `Findings`.
    """
    from msf.config import settings_for
    from msf.data import picture_groups
    from msf.provenance import provenance
    from msf.report.findings import Findings

    metrics, prediction = evaluation
    settings = settings_for("evaluate", network.config.inference.classify, None, fields)
    command = shlex.join(["msf", *sys.argv[1:]])
    return Findings(
        dataset=data,
        split=metrics["split"],
        prediction=prediction,
        metrics=metrics,
        groups=picture_groups(data, metrics["split"]),
        made_with=provenance(network, settings, seed=metrics["seed"], micro_batch=prediction.micro_batch),
        source={
            "command": command,
            "dataset": data.name,
            "dataset_sha256": data.fingerprint,
            "split": metrics["split"],
        },
        **others,
    )


def generated_pictures(
    network: MedSymmFlow,
    data: ImageDataset,
    n: int,
    seed: int,
    precision: PrecisionName | None,
    advance: console.Advance,
) -> dict[str, Any]:
    """Return n pictures of each class, made at the size of the data: class to float [n, C, H, W]."""
    import torch

    if n == 0:
        return {}
    labels = torch.arange(data.n_classes).repeat_interleave(n)

    def progress(done: int, total: int) -> None:
        advance(done, total, stage="generating")

    pictures = network.generate(labels, seed=seed, precision=precision, size=data.image_size, progress=progress).cpu()
    return {name: pictures[labels == label] for label, name in enumerate(data.class_names)}
