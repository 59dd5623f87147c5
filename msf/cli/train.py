"""`msf train`."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msf.cli import console, flags
from msf.cli.sources import DatasetFlags, is_packed, open_dataset
from msf.config import RECIPES

if TYPE_CHECKING:
    from msf.training.train import TrainingProgress


@flags.grouped
def train(
    *,
    recipe: Annotated[
        str, typer.Option(help=f"Named configuration to start from: {', '.join(RECIPES)}.")
    ] = "cpu-small",
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the run. Default: runs/<dataset>-<recipe>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    latent_cache: Annotated[
        bool,
        typer.Option(
            help="With an autoencoder: encode all pictures once, into files beside the data (or under MSF_CACHE), "
            "instead of every batch at every step."
        ),
    ] = True,
    device: flags.Device = None,
    json_file: flags.JsonFile = None,
    packing: DatasetFlags,
    config: flags.ConfigFields,
) -> None:
    """Train a network and keep the epoch that is best on the validation split.

    A run that was interrupted or killed goes on with the same command and --resume. The flags of the configuration
    change the recipe.
    """
    experiment = flags.configured(recipe, config)

    with console.resumable() as kept:
        with console.progress_bar(f"reading {experiment.data.dataset}", lines=True) as advance:
            from msf.training.train import train as run_training

            name, size = experiment.data.dataset, experiment.data.image_size
            dataset = open_dataset(name, packing, advance, size=size)
            if is_packed(dataset):  # an evaluation shall find the very splits
                named = dataclasses.replace(experiment.data, dataset=str(dataset.path))
                experiment = dataclasses.replace(experiment, data=named)
            folder = out if out is not None else Path("runs") / f"{dataset.name}-{recipe}"
            selection = experiment.train.selection
            is_idle = True

            def show(progress: TrainingProgress) -> None:
                nonlocal is_idle
                is_idle = False
                show_training(progress, advance, dataset.name, selection)

            result = run_training(
                experiment,
                dataset,
                folder,
                device=device,
                resume=resume,
                latent_cache=latent_cache,
                progress=show,
                encoding_progress=lambda done, total: advance(
                    done, total, stage="encoding pictures", is_milestone=done == total
                ),
            )
        kept.what = f"the trained network is in {str(folder)!r}"
        n_epochs = len(result.history)
        if is_idle:
            console.err.print(f"All {n_epochs} epochs were done before; for more, train in another folder.")
        figures = {
            "folder": str(result.folder),
            "best_epoch": result.best_epoch,
            f"val_{selection}": result.best_value,
            "n_epochs": n_epochs,
            "seconds": result.seconds,
        }
        shown = {**figures, "best_epoch": f"{result.best_epoch + 1} of {n_epochs}"}  # from 1, as the progress counts
        console.print_figures(f"Trained on {dataset.name}", shown)
        console.out.print(f"Next: {shlex.join(['msf', 'evaluate', '--checkpoint', str(folder), '--split', 'test'])}")
        console.write_json(json_file, {**figures, "history": result.history})


def show_training(progress: TrainingProgress, advance: console.Advance, name: str, selection: str) -> None:
    """Show how far a training is, with the validation figure that chooses the kept epoch."""
    note = f"epoch {progress.epoch + 1} of {progress.n_epochs}, loss {progress.loss:.3f}"
    ends_epoch = progress.validated == 1
    if progress.validated is not None and not ends_epoch:
        note += f", validating {progress.validated:.0%}"
    if progress.validation is not None and progress.validation[selection] is not None:
        note += f", val {selection} {progress.validation[selection]:.3f}"
    advance(progress.step, progress.n_steps, note, stage=f"training on {name}", is_milestone=ends_epoch)
