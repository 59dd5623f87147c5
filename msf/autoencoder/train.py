"""Training a small `AutoencoderKL` on one's own pictures, so that the latent path needs no download."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msf.autoencoder.kl import CONFIG_FILE, WEIGHTS_FILE, KLAutoencoder
from msf.autoencoder.losses import psnr
from msf.autoencoder.settings import AutoencoderProgress, AutoencoderTraining
from msf.autoencoder.training_run import AutoencoderRun
from msf.data import ImageDataset, prepare_images
from msf.device import choose_device
from msf.files.claim import claimed_folder

__all__ = ["AutoencoderProgress", "AutoencoderTraining", "TrainedAutoencoder", "train_autoencoder"]


@dataclass(frozen=True)
class TrainedAutoencoder:
    """How a training ended.

    Args:
        folder: Where the autoencoder was written.
        autoencoder: The trained autoencoder, on the device of the training.
        settings: What it was trained with.
        val_psnr: Mean peak signal-to-noise ratio of the validation pictures, in decibels.
        history: One dictionary per epoch: `epoch`, `train_loss`.
        seconds: Time of the training, all parts of it, and the validation.
    """

    folder: Path
    autoencoder: KLAutoencoder
    settings: AutoencoderTraining
    val_psnr: float
    history: list[dict[str, Any]]
    seconds: float

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return pictures at the training's size, and what the autoencoder makes of their most likely latents.

        Args:
            images: uint8 [N, H, W, C].

        Returns:
            Two tensors, float32 [N, 3, image_size, image_size] in [0, 1], on the CPU.
        """
        pictures = prepare_images(images, self.settings.image_size, 3)
        device = next(self.autoencoder.model.parameters()).device
        decoded = self.autoencoder.decode(self.autoencoder.encode(pictures.to(device)).mode()).cpu()
        return (pictures + 1) / 2, (decoded.clamp(-1, 1) + 1) / 2


def train_autoencoder(
    dataset: ImageDataset,
    folder: str | os.PathLike[str],
    settings: AutoencoderTraining | None = None,
    *,
    device: str | torch.device | None = None,
    resume: bool = False,
    progress: Callable[[AutoencoderProgress], None] | None = None,
) -> TrainedAutoencoder:
    """Train an autoencoder on the pictures of the `train` split and write it when it is done.

        loss = |reconstruction - picture| + gradient_weight * |their gradients' difference| + kl_weight * KL

    The first two terms are means over several resolutions; the reconstruction is that of a latent drawn from the
    posterior. Before the first epoch the model learns colours, on small mosaics of random ones. Pictures are mirrored
    at random, whatever the data set: what matters is that any picture comes back. Grey pictures are repeated to three
    channels. The scaling factor in the written `config.json` is 1 / std of the training latents (posterior mode).

    Args:
        dataset: Pictures; labels play no part.
        folder: Created if missing. Gets `config.json` and `diffusion_pytorch_model.safetensors`, which diffusers reads
            too; until then it holds `training_state.pt`, for `resume`. Whatever ends the training early carries a note
            (`__notes__`) on what of it the folder keeps. Ctrl-C saves the state first.
        settings: What to train and how; default: `AutoencoderTraining()`.
        device: Default: CUDA if there is any, else the CPU.
        resume: Go on from the folder's training state, or start if it has none.
        progress: Called every few steps, when an epoch has ended, and while the trained model is judged.

    Returns:
        The trained autoencoder with its figures.

    Raises:
        ValueError: The folder holds an autoencoder already, or an unfinished training and `resume` is false, or one
            with other settings or data; or another training uses it; diffusers is not installed; or the device is not
            one of this machine.
        FloatingPointError: The loss or a weight is not finite; the last saved state, from before, stays.
        OSError: The folder is a file or cannot be written, or the disk is full; what was saved before stays.

    Numerics:
        Weights, optimiser and loss in float32. On one device and thread count the run is reproducible bit for bit,
        resumed or not.

    Source:
        Latent diffusion, arXiv 2112.10752, section 3.1, with a gradient term in place of perceptual and adversarial
        losses, which would need a pretrained network and many more steps.
    """
    settings = AutoencoderTraining() if settings is None else settings
    target = choose_device(device)
    with claimed_folder(folder, "training") as path:
        if (path / WEIGHTS_FILE).exists():
            raise ValueError(f"folder {str(path)!r} holds an autoencoder already: choose another folder")
        run = AutoencoderRun(dataset, path, settings, target, resume=resume)
        if run.state.saved_step is None and (path / CONFIG_FILE).exists():
            raise ValueError(f"folder {str(path)!r} holds the {CONFIG_FILE} of something else: choose another folder")
        try:
            run.train(progress)
            autoencoder, val_psnr = _judged(run, dataset, settings, target, progress)
            autoencoder.save_pretrained(path)
        except BaseException as error:
            error.add_note(run.state.kept(run.n_steps))
            raise
        run.state.path.unlink()
    return TrainedAutoencoder(path, autoencoder, settings, val_psnr, run.history, run.seconds)


def _judged(
    run: AutoencoderRun,
    dataset: ImageDataset,
    settings: AutoencoderTraining,
    device: torch.device,
    progress: Callable[[AutoencoderProgress], None] | None,
) -> tuple[KLAutoencoder, float]:
    """Return the trained autoencoder, with latents of deviation one, and its figure on the validation pictures."""
    n_done, n_total = 0, len(dataset.train) + len(dataset.val)

    def batches(images: Tensor) -> Iterator[Tensor]:
        nonlocal n_done
        for part in torch.split(images, settings.batch_size):
            yield prepare_images(part, settings.image_size, 3).to(device)
            n_done += len(part)
            if progress is not None:
                loss = run.history[-1]["train_loss"]
                progress(AutoencoderProgress(n_done, n_total, loss, "figures", settings.epochs))

    unscaled = KLAutoencoder(run.model)
    latents = torch.cat([unscaled.encode(pictures).mode() for pictures in batches(dataset.train.images)])
    run.model.register_to_config(scaling_factor=unscaled.scaling_factor / float(latents.std()))
    autoencoder = KLAutoencoder(run.model).fold()
    ratios = [
        psnr(autoencoder.decode(autoencoder.encode(pictures).mode()), pictures)
        for pictures in batches(dataset.val.images)
    ]
    return autoencoder, float(torch.cat(ratios).mean())
