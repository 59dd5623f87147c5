"""`msf demo`: the whole method on synthetic cells, in minutes, without network."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msf.cli import console, flags
from msf.cli.report import findings, generated_pictures
from msf.cli.targets import write_result
from msf.cli.train import show_training
from msf.config import RECIPES, PrecisionName

if TYPE_CHECKING:
    from msf.data import ImageDataset

N_GENERATED = 10
RANKED_BY = "predictive_entropy"
ABOUT = (
    "A small network, trained from scratch on a CPU. **The pictures are synthetic**: phantoms that look like blood "
    "cells, made by a program, with classes that overlap. They show that the method works here, and nothing about "
    "medicine. Real data: `msf train --dataset bloodmnist`."
)


@flags.grouped
def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the network, pictures and numbers.")] = Path(
        "demo-out"
    ),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data. Default: a few minutes' worth.")
    ] = None,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(help="Arithmetic of predictions and pictures: fp32, bf16, or auto, what is faster here."),
    ] = None,
    run: flags.Run,
) -> None:
    """Train on synthetic cells, classify with uncertainty, generate, and draw everything.

    Writes report.html, summary.md, metrics.json and pictures. A second call finds the trained network and only draws
    again.
    """
    started = time.monotonic()
    recipe = RECIPES["demo"]
    settings = dataclasses.replace(recipe.train, seed=run.seed)
    if epochs is not None:
        settings = dataclasses.replace(settings, epochs=epochs, steps=None)
    experiment = dataclasses.replace(recipe, train=settings)
    with console.resumable(shlex.join(["msf", *sys.argv[1:]])) as kept:  # a second call goes on by itself
        with console.progress_bar("making synthetic cells", lines=True) as advance:
            from msf.data import load_dataset
            from msf.training.train import train

            dataset = load_dataset(experiment.data.dataset)
            result = train(
                experiment,
                dataset,
                out / "network",
                device=run.device,
                resume=True,
                progress=lambda progress: show_training(progress, advance, "synthetic cells", settings.selection),
            )
        kept.what = f"the trained network is in {str(out / 'network')!r}"
        console.out.print(
            f"trained for {result.seconds:.0f} s; best epoch {result.best_epoch + 1} of {len(result.history)}"
        )
        _write_report(out, dataset, run, result.seconds, precision)
    console.out.print(f"done in {time.monotonic() - started:.0f} s: open {out / 'report.html'}")


def _write_report(
    out: Path, dataset: ImageDataset, run: flags.Run, training_seconds: float, precision: PrecisionName | None = None
) -> None:
    from msf.cli.checkpoints import load_flow
    from msf.data import phantom_bayes_accuracy
    from msf.evaluate import evaluate_split
    from msf.judge.metrics import SUMMARY
    from msf.report import (
        certainty_grid,
        real_and_generated_grid,
        report_page,
        risk_coverage_figure,
        write_figure,
        write_summary,
    )

    flow = load_flow(str(out / "network"), run.device)
    classifying, generating = flow.config.inference.classify, flow.config.inference.generate
    with console.progress_bar("classifying", lines=True) as advance:
        evaluation = evaluate_split(flow, dataset, seed=run.seed, progress=advance, precision=precision)
        generated = generated_pictures(flow, dataset, N_GENERATED, run.seed, precision, advance)
    prediction = evaluation.prediction
    metrics = {
        **evaluation.metrics, "bayes_accuracy_bound": phantom_bayes_accuracy(), "training_seconds": training_seconds
    }  # fmt: skip
    test = dataset.test
    pictures = test.images.permute(0, 3, 1, 2) / 255
    real = {name: pictures[test.labels == label][:N_GENERATED] for label, name in enumerate(dataset.class_names)}
    write_figure(out / "generated.png", real_and_generated_grid(real, generated))
    write_figure(
        out / "certainty.png", certainty_grid(pictures, prediction, test.labels, dataset.class_names, RANKED_BY)
    )
    write_figure(out / "risk_coverage.png", risk_coverage_figure(metrics["scores"], metrics["accuracy"]))
    found = findings(flow, dataset, evaluation, {"precision": precision}, generated=generated)
    write_result(out / "report.html", report_page(found))
    facts = {
        "data": f"phantoms (synthetic), {len(dataset.train)} pictures to train on",
        "label code": flow.code.name,
        "noise draws per picture": classifying.n_samples,
        "classification": f"{classifying.n_steps} {classifying.method} step(s)",
        "generation": f"{generating.n_steps} {generating.method} steps",
        "training": f"{training_seconds:.0f} s",
        "classification speed": f"{metrics['samples_per_second']:.0f} samples/s",
        "arithmetic": f"{prediction.precision}, convolutions by {prediction.convolution}",
    }
    bound = metrics["bayes_accuracy_bound"]
    write_summary(
        out / "summary.md",
        title="MedSymmFlow demo",
        about=ABOUT,
        facts=facts,
        metrics=metrics,
        remarks=[
            f"The classes overlap: no classifier of these pictures can have an expected accuracy above {bound:.3f}.",
            f"`probability` comes from: {prediction.probability_source}.",
        ],
        pictures={
            "generated.png": "Generated against real pictures, per class.",
            "certainty.png": f"The most and the least certain test pictures, by {RANKED_BY}.",
            "risk_coverage.png": "Error rate when the most uncertain pictures are referred to a person.",
        },
    )
    console.write_json(out / "metrics.json", metrics)
    console.write_json(run.json_file, metrics)
    console.print_figures("Test split", {name: metrics[name] for name in SUMMARY})
