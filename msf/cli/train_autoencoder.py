"""`msf train-autoencoder`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msf.cli import console, flags
from msf.cli.sources import DatasetFlags, is_packed, open_dataset

if TYPE_CHECKING:
    from msf.autoencoder.train import AutoencoderProgress

PICTURE_FILE = "reconstructions.png"
N_PICTURES = 16


@dataclass(frozen=True)
class Fields:
    """Flags of `AutoencoderTraining`, where the defaults stand; its import takes too long for a help page."""

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

    def given(self) -> dict[str, Any]:
        """Return the fields whose flags were given.

        Raises:
            ValueError: Channels that are not whole numbers.
        """
        values = {name: value for name, value in vars(self).items() if value is not None}
        if self.block_channels is not None:
            values["block_channels"] = flags.whole_numbers("block_channels", self.block_channels)
        return values


@flags.grouped
def train_autoencoder(
    *,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Data set name, path of an .npz in MedMNIST layout, or a folder or table of pictures."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder to write. Default: autoencoders/<dataset>.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the training in that folder.")] = False,
    packing: DatasetFlags,
    fields: Fields,
    run: flags.Run,
) -> None:
    """Train a small autoencoder on your pictures, for flows on their latents.

    The folder gets the autoencoder in diffusers' layout, and a picture of validation images with their
    reconstructions to look at. A training that was interrupted or killed goes on with the same command and --resume.
    """
    values = fields.given()
    with console.resumable() as kept:
        with console.progress_bar(f"reading {dataset}", lines=True) as advance:
            from msf.autoencoder.train import AutoencoderTraining
            from msf.autoencoder.train import train_autoencoder as run_training

            settings = AutoencoderTraining(seed=run.seed, **values)
            pictures = open_dataset(dataset, packing, advance, size=settings.image_size)
            folder = out if out is not None else Path("autoencoders") / pictures.name
            stages = {
                "colours": "training an autoencoder on colours",
                "pictures": f"training an autoencoder on {pictures.name}",
                "figures": "coding pictures",
            }
            n_epochs = 0

            def show(progress: AutoencoderProgress) -> None:
                nonlocal n_epochs
                ends_epoch, n_epochs = progress.n_epochs > n_epochs, progress.n_epochs
                note = f"loss {progress.loss:.3f}"
                stage = stages[progress.stage]
                advance(progress.step, progress.n_steps, note, stage=stage, is_milestone=ends_epoch)

            result = run_training(pictures, folder, settings, device=run.device, resume=resume, progress=show)

        kept.what = f"the trained autoencoder is in {str(folder)!r}"
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
            # Of a folder or a table the packed file, whose splits the flow then shares.
            f"Next: msf train --recipe latent-cpu-small --dataset {pictures.path if is_packed(pictures) else dataset} "
            f"--image-size {settings.image_size} --autoencoder-source {folder}"
        )
        console.write_json(run.json_file, {**figures, "history": result.history})
