"""`msf train`."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msf.cli import console, flags
from msf.cli.sources import DatasetFlags, is_packed, open_dataset
from msf.config import RECIPES
from msf.ranks import is_main

if TYPE_CHECKING:
    from msf.config import ExperimentConfig
    from msf.data import ImageDataset
    from msf.training.train import TrainingProgress, TrainingResult

FORMAT = "msf-train/1"


@dataclass(frozen=True)
class Going:
    """Where a run lies, and how it is gone about."""

    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of the run. Default: runs/<dataset>-<recipe>.")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Take a few steps, throw them away, and print parameters, memory, steps and an estimate of the time; "
            "nothing is written.",
        ),
    ] = False
    latent_cache: Annotated[
        bool,
        typer.Option(
            help="With an autoencoder: encode all pictures once, into files beside the data (or under MSF_CACHE), "
            "instead of every batch at every step."
        ),
    ] = True


@flags.grouped
def train(
    *,
    recipe: Annotated[
        str, typer.Option(help=f"Named configuration to start from: {', '.join(RECIPES)}.")
    ] = "cpu-small",
    going: Going,
    device: flags.Device = None,
    json_file: flags.JsonFile = None,
    packing: DatasetFlags,
    config: flags.ConfigFields,
) -> None:
    """Train a network and keep the epoch that is best on the validation split.

    A run that was interrupted or killed goes on with the same command and --resume. The flags of the configuration
    change the recipe. Several processes share a run: torchrun --nproc-per-node 2 -m msf train ...
    """
    experiment = flags.configured(recipe, config)
    if going.dry_run:
        return _rehearse(experiment, going, device, json_file, packing)

    with console.resumable() as kept:
        with console.progress_bar(f"reading {experiment.data.dataset}", lines=True) as advance:
            from msf.training.train import train as run_training

            experiment, dataset = _opened(experiment, packing, advance)
            folder = going.out if going.out is not None else Path("runs") / f"{dataset.name}-{recipe}"
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
                resume=going.resume,
                latent_cache=going.latent_cache,
                progress=show,
                encoding_progress=lambda done, total: advance(
                    done, total, stage="encoding pictures", is_milestone=done == total
                ),
            )
        kept.what = f"the trained network is in {str(folder)!r}"
        n_epochs = len(result.history)
        if is_idle:
            console.err.print(f"All {n_epochs} epochs were done before; for more, go on with --extend EPOCHS.")
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
        if json_file is not None and is_main():
            made_with = _provenance(result, dataset, recipe)
            content = {"format": FORMAT, **figures, "history": result.history, "provenance": made_with}
            console.write_json(json_file, content)


def show_training(progress: TrainingProgress, advance: console.Advance, name: str, selection: str) -> None:
    """Show how far a training is, with the validation figure that chooses the kept epoch."""
    note = f"epoch {progress.epoch + 1} of {progress.n_epochs}, loss {progress.loss:.3f}"
    if progress.image_loss is not None and progress.semantic_loss is not None:
        note += f" (image {progress.image_loss:.3f}, semantic {progress.semantic_loss:.3f})"
    ends_epoch = progress.validated == 1
    if progress.images_per_second is not None:
        note += f", {progress.images_per_second:.0f} images/s"
    if progress.validated is not None and not ends_epoch:
        note += f", validating {progress.validated:.0%}"
    if progress.validation is not None and progress.validation[selection] is not None:
        note += f", val {selection} {progress.validation[selection]:.3f}"
    advance(progress.step, progress.n_steps, note, stage=f"training on {name}", is_milestone=ends_epoch)


def _opened(
    experiment: ExperimentConfig, packing: DatasetFlags, advance: console.Advance
) -> tuple[ExperimentConfig, ImageDataset]:
    dataset = open_dataset(experiment.data.dataset, packing, advance, size=experiment.data.image_size)
    if is_packed(dataset):  # an evaluation shall find the very splits
        named = dataclasses.replace(experiment.data, dataset=str(dataset.path))
        experiment = dataclasses.replace(experiment, data=named)
    return experiment, dataset


def _rehearse(
    experiment: ExperimentConfig, going: Going, device: str | None, json_file: Path | None, packing: DatasetFlags
) -> None:
    with console.progress_bar(f"reading {experiment.data.dataset}", lines=True) as advance:
        from msf.training.rehearsal import N_STEPS, rehearse

        experiment, dataset = _opened(experiment, packing, advance)
        advance(0, N_STEPS, stage="measuring a few steps")
        found = dataclasses.asdict(rehearse(experiment, dataset, device=device, latent_cache=going.latent_cache))
    memory = found["peak_memory_bytes"]
    shown = {
        **found,
        "peak_memory_bytes": None if memory is None else f"{memory / 2**20:.0f} MiB",
        "state_bytes": f"{found['state_bytes'] / 2**20:.0f} MiB",
        "seconds": _duration(found["seconds"]),
    }
    console.print_figures(f"A training on {dataset.name} would need", shown)
    console.write_json(json_file, {"format": f"{FORMAT}-dry-run", **found})


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _provenance(result: TrainingResult, dataset: ImageDataset, recipe: str) -> dict[str, Any]:
    from msf.medsymmflow import MedSymmFlow
    from msf.provenance import of_network

    flow = MedSymmFlow.from_pretrained(result.folder)
    made_with = {
        "recipe": recipe,
        "dataset": dataset.name,
        "dataset_sha256": dataset.fingerprint,
        "precision": result.precision,
        "n_processes": result.n_processes,
        "taken_over": result.taken_over,
        "experiment": flow.config.to_dict(),
    }
    return of_network(flow, made_with, seed=flow.config.train.seed, device=result.device)
