"""`msf train-autoencoder`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from msf.cli import console, flags

PICTURE_FILE = "reconstructions.png"
N_PICTURES = 16


@dataclass(frozen=True)
class Settings:
    """What is trained and how; the defaults stand in `AutoencoderTraining`, whose import takes too long for a help."""

    image_size: Annotated[
        int | None, typer.Option(help="Height and width that the pictures are resized to. Default: 128.")
    ] = None
    block_channels: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            help="Channels per level, finest first; every level but the last halves the resolution. Default: 32,64,64.",
        ),
    ] = None
    latent_channels: Annotated[int | None, typer.Option(help="Channels of the latents. Default: 4.")] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the training split. Default: 20.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step. Default: 4.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Largest learning rate. Default: 0.0005.")] = None
    kl_weight: Annotated[
        float | None, typer.Option(help="Weight of the latents' divergence from N(0, I). Default: 0.0001.")
    ] = None
    gradient_weight: Annotated[
        float | None, typer.Option(help="Weight of the loss between picture gradients. Default: 1.")
    ] = None
    colour_steps: Annotated[
        int | None,
        typer.Option(help="Steps on small mosaics of random colours, before the first epoch. Default: 1000."),
    ] = None
    plain_share: Annotated[
        float | None,
        typer.Option(help="Share of the training pictures that are replaced by one random colour. Default: 0.1."),
    ] = None


@flags.grouped
def train_autoencoder(
    *,
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="Name of a known data set, or the path of an .npz in MedMNIST layout.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write. Default: autoencoders/<dataset>.")
    ] = None,
    settings: Settings,
    data_root: flags.DataRoot = None,
    run: flags.Run,
) -> None:
    """Train a small autoencoder on your pictures, for flows on their latents.

    The folder gets the autoencoder in diffusers' layout, and a picture of validation images with their
    reconstructions to look at.
    """
    from msf.autoencoder.train import AutoencoderProgress, AutoencoderTraining
    from msf.autoencoder.train import train_autoencoder as run_training
    from msf.data import load_dataset

    given = {name: value for name, value in vars(settings).items() if value is not None}
    if settings.block_channels is not None:
        given["block_channels"] = flags.whole_numbers("block_channels", settings.block_channels)
    training = AutoencoderTraining(seed=run.seed, **given)
    pictures = load_dataset(dataset, data_root)
    folder = out if out is not None else Path("autoencoders") / pictures.name
    with console.progress_bar(f"training an autoencoder on {pictures.name}") as advance:

        def show(progress: AutoencoderProgress) -> None:
            advance(progress.step, progress.n_steps, f"loss {progress.loss:.3f}")

        result = run_training(pictures, folder, training, device=run.device, progress=show)

    from msf.report import reconstruction_grid, write_figure

    n = len(pictures.val)
    # Spread over the split: archives are often sorted by class.
    rows = [k * n // min(n, N_PICTURES) for k in range(min(n, N_PICTURES))]
    write_figure(folder / PICTURE_FILE, reconstruction_grid(*result.reconstruct(pictures.val.images[rows])))
    figures = {
        "folder": str(folder),
        "val_psnr": result.val_psnr,
        "down_factor": result.autoencoder.down_factor,
        "latent_channels": result.autoencoder.latent_channels,
        "scaling_factor": result.autoencoder.scaling_factor,
        "fingerprint": result.autoencoder.fingerprint,
        "seconds": result.seconds,
    }
    console.print_figures(f"Autoencoder trained on {pictures.name}", figures)
    console.out.print(f"Look at {folder / PICTURE_FILE}: originals above their reconstructions.")
    console.out.print(
        f"Next: msf train --recipe latent-cpu-small --dataset {dataset} --image-size {training.image_size} "
        f"--autoencoder-source {folder}"
    )
    console.write_json(run.json_file, {**figures, "history": result.history})
