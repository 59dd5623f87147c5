"""`msf pool-report`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from msf.cli import console, flags
from msf.cli.checkpoints import files_of, load_flow
from msf.cli.targets import check_apart, check_folder
from msf.files.claim import claimed_folder


@dataclass(frozen=True)
class Judged:
    """Against what, and how strictly."""

    real: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Data set name or .npz path. Default: the one the network was trained on."),
    ] = None
    features: Annotated[
        str,
        typer.Option(
            metavar="classifier|encoder|FILE",
            help="What pictures are compared in: the features of a small classifier that is trained on the real "
            "training pictures now, the encoder of a flow on latents, or a file: weights of Inception for FID (needs "
            "torch-fidelity), or a TorchScript network.",
        ),
    ] = "classifier"
    level: Annotated[
        float, typer.Option(help="Share of independent pictures that may wrongly be called memorised, at most.")
    ] = 0.01
    classifier_steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of the reference classifier.")] = 600


PoolPlace = Annotated[Path, typer.Argument(metavar="POOL", help="Folder or .npz of 'msf generate --per-class'.")]


@flags.grouped
def pool_report(
    pool: PoolPlace,
    *,
    judged: Judged,
    checkpoint: flags.Checkpoint = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the report. Default: <POOL>-report.")
    ] = None,
    data_root: flags.DataRoot = None,
    fields: flags.ClassifyFields,
    run: flags.Run,
) -> None:
    """Judge a pool: fidelity, diversity, memorisation and class agreement.

    Writes report.json, pictures.csv (a row per picture, which 'msf filter' reads) and nearest.png: generated pictures
    above the training pictures that are nearest to them. The test pictures are judged likewise, to compare with.
    """
    from msf import report
    from msf.data import load_dataset
    from msf.files.atomic import write_atomically
    from msf.pools.classifier import ClassifierSettings
    from msf.pools.page import nearest_page
    from msf.pools.pool import read_pool
    from msf.pools.quality import QualitySettings, judge_pool
    from msf.pools.selection import PAGE_FILE, REPORT_FILE, ROWS_FILE
    from msf.pools.stores import write_rows

    settings = QualitySettings(
        features=judged.features, level=judged.level, seed=run.seed,
        classifier=ClassifierSettings(n_steps=judged.classifier_steps, augment=True),
        classify={name: value for name, value in fields.items() if value is not None},
    )  # fmt: skip
    made = read_pool(pool)
    folder = check_folder(report_folder(pool) if out is None else out)
    files = [folder / name for name in (REPORT_FILE, ROWS_FILE, PAGE_FILE)]
    there = [file for file in files if file.exists()]
    if there:
        raise ValueError(f"{str(there[0])!r} is there already: give another folder with --out, or remove it")
    check_apart({"--json": run.json_file}, [*files, *files_of(checkpoint)])
    network = load_flow(checkpoint, run.device)
    dataset = load_dataset(network.config.data.dataset if judged.real is None else judged.real, data_root)
    with claimed_folder(folder, "report"):
        with console.progress_bar("judging the pool", lines=True) as advance:
            found = judge_pool(made, dataset, network, settings, advance)
        write_rows(files[1], found.rows, list(found.rows[0]))
        report.write_figure(files[2], nearest_page(found, made, seed=run.seed))
        text = json.dumps(found.figures, indent=2, allow_nan=False) + "\n"
        write_atomically(files[0], lambda path: path.write_text(text, encoding="utf-8"))
    _print(found.figures)
    for warning in found.figures["warnings"]:
        console.err.print(f"note: {console.printable(warning)}")
    console.out.print(f"figures, a row per picture, and a page to look at: {console.printable(str(folder))}")
    console.write_json(run.json_file, found.figures)


def report_folder(pool: Path) -> Path:
    """Return the folder of a pool's report."""
    return pool.with_name(f"{pool.name.removesuffix('.npz')}-report")


def _print(figures: dict[str, Any]) -> None:
    names = ("fid", "kid", "precision", "recall", "density", "coverage")
    table: list[tuple[str, ...]] = [("", "pool", "test pictures")]
    for name in names:
        table.append((name, *(console.shown(figures[part][name]) for part in ("fidelity", "fidelity_of_test"))))
    memorised, agreement = figures["memorisation"], figures["agreement"]
    table.append(
        (f"memorised at {memorised['level']:g}", *(console.shown(memorised[n]) for n in ("share", "share_of_test")))
    )
    for judge in ("flow", "classifier"):
        table.append((f"class by {judge}", *(console.shown(agreement[n]) for n in (judge, f"{judge}_on_test"))))
    console.print_table(table, title=f"{figures['n']} pictures; features: {figures['features']}")
    rows = [("class", "n", "fid", "precision", "recall", "coverage", "memorised", "class by both")]
    for row in figures["per_class"]:
        cells = (row[name] for name in ("n", "fid", "precision", "recall", "coverage", "memorised", "both"))
        rows.append((row["label_name"], *map(console.shown, cells)))
    console.print_table(rows)
