"""`msf train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msf.cli import console, flags


@flags.grouped
def train(
    *,
    recipe: Annotated[
        str, typer.Option(help="Named configuration to start from: cpu-small, published-28 or published-224.")
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
    data_root: flags.DataRoot = None,
    device: flags.Device = None,
    json_file: flags.JsonFile = None,
    config: flags.ConfigFields,
) -> None:
    """Train a network and keep the epoch that is best on the validation split.

    A killed run goes on with the same command and --resume. The flags of the configuration change the recipe.
    """
    experiment = flags.configured(recipe, config)

    from msf.data import load_dataset
    from msf.training.train import TrainingProgress
    from msf.training.train import train as run_training

    dataset = load_dataset(experiment.data.dataset, data_root)
    folder = out if out is not None else Path("runs") / f"{dataset.name}-{recipe}"
    selection = experiment.train.selection
    with (
        console.progress_bar("encoding") as advance_encoding,
        console.progress_bar(f"training on {dataset.name}") as advance,
    ):

        def show(progress: TrainingProgress) -> None:
            note = f"loss {progress.loss:.3f}"
            if progress.validation is not None:
                note += f", val {selection} {progress.validation[selection]:.3f}"
            advance(progress.step, progress.n_steps, note)

        result = run_training(
            experiment,
            dataset,
            folder,
            device=device,
            resume=resume,
            latent_cache=latent_cache,
            progress=show,
            encoding_progress=advance_encoding,
        )
    figures = {
        "folder": str(result.folder),
        "best_epoch": result.best_epoch,
        f"val_{selection}": result.best_value,
        "n_epochs": len(result.history),
        "seconds": result.seconds,
    }
    console.print_figures(f"Trained on {dataset.name}", figures)
    console.out.print(f"Next: msf evaluate --checkpoint {folder} --split test")
    console.write_json(json_file, {**figures, "history": result.history})
