"""`msf augment-study`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from msf.cli import console, flags
from msf.cli.targets import check_folder
from msf.files.claim import claimed_folder


@dataclass(frozen=True)
class Studied:
    """How large the study is."""

    n_seeds: Annotated[int, typer.Option("--seeds", min=1, help="Repetitions, from --seed on.")] = 2
    budgets: Annotated[
        str, typer.Option(metavar="N,N,...", help="Real labelled pictures per class that the classifiers have.")
    ] = "5,20,80"
    per_class: Annotated[int, typer.Option("--per-class", min=3, help="Generated pictures per class.")] = 200
    classifier_steps: Annotated[
        int, typer.Option(min=1, help="Optimiser steps of every reference classifier, the same in all arms.")
    ] = 600


@flags.grouped
def augment_study(
    *,
    recipe: Annotated[str, typer.Option(help="Named configuration of the flow to start from.")] = "demo",
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", callback=check_folder, help="Folder of the study; one left unfinished goes on."),
    ] = Path("augment-study"),
    studied: Studied,
    data_root: flags.DataRoot = None,
    device: flags.Device = None,
    json_file: flags.JsonFile = None,
    config: flags.ConfigFields,
) -> None:
    """Ask whether training a classifier with generated pictures is worth it.

    A flow is trained on one half of the training split, class by class, and makes pictures; a small classifier is
    trained on few pictures of the other half, alone, with classical augmentation, with the generated ones, and on
    generated ones only. --seed is the first seed. The same command again goes on.
    """
    from msf import report
    from msf.data import load_dataset
    from msf.files.atomic import write_atomically
    from msf.pools.study import StudySettings, run_study
    from msf.pools.study_report import as_markdown, study_figure, summarise

    experiment = flags.configured(recipe, config)
    budgets = flags.whole_numbers("budgets", studied.budgets)
    settings = StudySettings(
        n_seeds=studied.n_seeds, budgets=budgets, per_class=studied.per_class, seed=experiment.train.seed
    )
    classifier = dataclasses.replace(settings.classifier, n_steps=studied.classifier_steps)
    settings = dataclasses.replace(settings, classifier=classifier)
    dataset = load_dataset(experiment.data.dataset, data_root)
    with (
        console.resumable("the same command"),
        claimed_folder(out, "study"),
        console.progress_bar(f"reading {dataset.name}", lines=True) as advance,
    ):
        rows = run_study(dataset, experiment, settings, out, device=device, progress=advance)
    figures = {
        "dataset": dataset.name, "data": dataset.fingerprint, "recipe": recipe,
        "experiment": experiment.to_dict(), "settings": settings.to_dict(),
        **summarise(rows, dataset.test.labels, seed=settings.seed),
    }  # fmt: skip
    page = as_markdown(figures, f"Are generated pictures of {dataset.name} worth it?")
    write_atomically(out / "study.md", lambda path: path.write_text(page, encoding="utf-8"))
    report.write_figure(out / "study.png", study_figure(figures))
    table = [("arm", "real per class", "balanced accuracy")] + [
        (row["arm"], "-" if row["budget"] is None else str(row["budget"]),
         f"{row['balanced_accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})")
        for row in figures["arms"]
    ]  # fmt: skip
    console.print_table(table, title=f"{dataset.name}, test, {studied.n_seeds} seeds")
    console.out.print(str(figures["verdict"]))
    console.out.print(f"table and plot: {console.printable(str(out / 'study.md'))}, study.png there")
    console.write_json(json_file, figures)
