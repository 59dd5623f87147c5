"""Training a small `AutoencoderKL` on one's own pictures, so that the latent path needs no download."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msf.autoencoder.kl import WEIGHTS_FILE, KLAutoencoder, require_diffusers
from msf.autoencoder.losses import autoencoder_loss, psnr
from msf.autoencoder.protocol import require_divisible
from msf.data import ImageDataset, apply_flips, draw_flips, epoch_batches, prepare_images, seeded_generator
from msf.device import choose_device
from msf_kernels.checks import require_finite, require_int, require_positive

# A loss is read from the device only this often, so that a step does not wait for it.
REPORT_EVERY = 10
# Keeps the draws of a step apart from those of an epoch's order.
STEP_STREAM = 1
MOSAIC_STREAM = 2
MOSAIC_BATCH = 8
MOSAIC_LATENTS = 8  # along a side
MOSAIC_TILES = 4  # along a side
MOSAIC_RATE = 4e-4
INITIAL_LOGVAR = -4.0
WARM_UP_SHARE = 0.05
LAST_RATE_SHARE = 0.02  # of the largest learning rate
GRADIENT_CLIP = 1.0


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """What is trained and how; the defaults take minutes on two cores for some hundred pictures.

    Args:
        image_size: Height and width that the pictures are resized to.
        block_channels: Channels per level, finest first; every level but the last halves the resolution.
        layers_per_block: Residual blocks per level of the encoder; the decoder has one more.
        n_groups: Groups of every normalisation.
        latent_channels: Channels of the latents.
        epochs: Passes over the training split.
        batch_size: Pictures per step.
        learning_rate: Largest learning rate.
        kl_weight: Weight of the divergence from N(0, I), in nats per latent.
        gradient_weight: Weight of the difference between picture gradients against that between values.
        colour_steps: Steps on small mosaics of random colours, before the first epoch.
        plain_share: Share of the training pictures that are replaced by one random colour. Label colours are such
            pictures, and look like nothing in the data.
        use_bf16: bfloat16 convolutions; weights and loss stay in float32.
        seed: Seed of weights, order, flips and noise.
    """

    image_size: int = 128
    block_channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = 1
    n_groups: int = 4
    latent_channels: int = 4
    epochs: int = 20
    batch_size: int = 4
    learning_rate: float = 5e-4
    kl_weight: float = 1e-4
    gradient_weight: float = 1.0
    colour_steps: int = 1000
    plain_share: float = 0.1
    use_bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        for name in ("image_size", "layers_per_block", "n_groups", "latent_channels", "epochs", "batch_size"):
            require_int(name, getattr(self, name), minimum=1)
        require_int("colour_steps", self.colour_steps, minimum=0)
        require_int("seed", self.seed, minimum=0, below=2**63)
        require_positive("learning_rate", self.learning_rate)
        for name in ("kl_weight", "gradient_weight"):
            require_finite(name, getattr(self, name))
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0; got {getattr(self, name)}")
        if not 0 <= self.plain_share < 1:
            raise ValueError(f"plain_share must be in [0, 1); got {self.plain_share}")
        if not self.block_channels or any(width < 1 or width % self.n_groups for width in self.block_channels):
            raise ValueError(
                f"block_channels must be positive multiples of n_groups = {self.n_groups}, one per level; "
                f"got {self.block_channels}"
            )
        require_divisible(self.image_size, self.image_size, 2 ** (len(self.block_channels) - 1))


@dataclass(frozen=True)
class AutoencoderProgress:
    """What a progress callback is told.

    Args:
        step: Optimiser steps done, of `n_steps`.
        n_steps: Steps of the whole run.
        loss: Mean training loss since the last report.
    """

    step: int
    n_steps: int
    loss: float


@dataclass(frozen=True)
class TrainedAutoencoder:
    """How a training ended.

    Args:
        folder: Where the autoencoder was written.
        autoencoder: The trained autoencoder, on the device of the training.
        settings: What it was trained with.
        val_psnr: Mean peak signal-to-noise ratio of the validation pictures, in decibels.
        history: One dictionary per epoch: `epoch`, `train_loss`.
        seconds: Time of the training and the validation.
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
        folder: Gets `config.json` and `diffusion_pytorch_model.safetensors`, which diffusers reads too.
        settings: What to train and how; default: `AutoencoderTraining()`.
        device: Default: CUDA if there is any, else the CPU.
        progress: Called every few steps.

    Returns:
        The trained autoencoder with its figures.

    Raises:
        ValueError: The folder holds an autoencoder already, diffusers is not installed, or the device is not one of
            this machine.
        FloatingPointError: The loss is not finite; nothing is written then.

    Numerics:
        Weights, optimiser and loss in float32. On one device and thread count the run is reproducible bit for bit.

    Source:
        Latent diffusion, arXiv 2112.10752, section 3.1, with a gradient term in place of perceptual and adversarial
        losses, which would need a pretrained network and many more steps.
    """
    settings = AutoencoderTraining() if settings is None else settings
    target = choose_device(device)
    if (Path(folder) / WEIGHTS_FILE).exists():
        raise ValueError(f"folder {str(folder)!r} holds an autoencoder already: choose another folder")
    started = time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = _new_model(settings).to(target)
    _fit_colours(model, settings, target)
    history = _fit(model, dataset, settings, target, progress)
    autoencoder = _with_unit_latents(model, dataset.train.images, settings, target)
    val_psnr = torch.cat([
        psnr(autoencoder.decode(autoencoder.encode(pictures).mode()), pictures)
        for pictures in _batches(dataset.val.images, settings, target)
    ])  # fmt: skip
    autoencoder.save_pretrained(folder)
    seconds = time.monotonic() - started
    return TrainedAutoencoder(Path(folder), autoencoder, settings, float(val_psnr.mean()), history, seconds)


def _fit(
    model: nn.Module,
    dataset: ImageDataset,
    settings: AutoencoderTraining,
    device: torch.device,
    progress: Callable[[AutoencoderProgress], None] | None,
) -> list[dict[str, Any]]:
    n = len(dataset.train)
    n_steps = settings.epochs * math.ceil(n / settings.batch_size)
    step = _Step(model, settings, n_steps, settings.learning_rate)
    history: list[dict[str, Any]] = []
    for epoch in range(settings.epochs):
        losses: list[Tensor] = []
        n_reported = 0
        for rows in epoch_batches(n, settings.batch_size, settings.seed, epoch):
            generator = seeded_generator(settings.seed, STEP_STREAM, step.n_done)
            pictures = prepare_images(dataset.train.images[rows], settings.image_size, 3)
            pictures = apply_flips(pictures, draw_flips(len(rows), generator))
            pictures = _with_plain_colours(pictures, settings.plain_share, generator)
            losses.append(step(pictures.to(device), generator))
            if step.n_done % REPORT_EVERY == 0 or step.n_done == n_steps:
                value = _finite(losses[n_reported:], step.n_done)
                n_reported = len(losses)
                if progress is not None:
                    progress(AutoencoderProgress(step.n_done, n_steps, value))
        history.append({"epoch": epoch, "train_loss": _finite(losses, step.n_done)})
    return history


def _fit_colours(model: nn.Module, settings: AutoencoderTraining, device: torch.device) -> None:
    """Teach a new model colours, on small mosaics of random ones.

    Norms take a picture's colour away, and the few colours of real pictures hardly bring it back: a model that starts
    with pictures encodes brightness and texture, and leaves hues for much later.
    """
    size = MOSAIC_LATENTS * 2 ** (len(settings.block_channels) - 1)
    # Edges between tiles are not what is to be learned here.
    step = _Step(model, replace(settings, gradient_weight=0.0), settings.colour_steps, MOSAIC_RATE)
    for _ in range(settings.colour_steps):
        generator = seeded_generator(settings.seed, MOSAIC_STREAM, step.n_done)
        colours = torch.rand(MOSAIC_BATCH, 3, MOSAIC_TILES, MOSAIC_TILES, generator=generator) * 2 - 1
        step(nn.functional.interpolate(colours, size=(size, size)).to(device), generator)


class _Step:
    """One optimiser step after the other, at a learning rate that rises and falls over all of them."""

    def __init__(self, model: nn.Module, settings: AutoencoderTraining, n_steps: int, learning_rate: float) -> None:
        self.n_done = 0
        self._model = model.train()
        self._settings = settings
        self._n_steps = n_steps
        self._learning_rate = learning_rate
        self._optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.99))

    def __call__(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Take a step; return its loss, 0-dim, on the device."""
        settings, model = self._settings, self._model
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * _rate_share(self.n_done, self._n_steps)
        with torch.autocast(pictures.device.type, torch.bfloat16, enabled=settings.use_bf16):
            posterior = model.encode(pictures).latent_dist  # type: ignore[operator]
            noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures.device)
            decoded = model.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[operator]
        loss = autoencoder_loss(
            decoded.float(), pictures, posterior.mean.float(), posterior.logvar.float(),
            kl_weight=settings.kl_weight, gradient_weight=settings.gradient_weight,
        )  # fmt: skip
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        self._optimizer.step()
        self.n_done += 1
        return loss.detach()


def _with_plain_colours(pictures: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace pictures by one random colour each, with a probability."""
    n = len(pictures)
    is_plain = torch.rand(n, generator=generator) < share
    colours = torch.rand(n, 3, generator=generator) * 2 - 1
    return torch.where(is_plain[:, None, None, None], colours[:, :, None, None], pictures)


def _with_unit_latents(
    model: Any, images: Tensor, settings: AutoencoderTraining, device: torch.device
) -> KLAutoencoder:
    """Wrap a trained model, with the scaling factor that gives the latents of the pictures a deviation of one."""
    unscaled = KLAutoencoder(model)
    latents = torch.cat([unscaled.encode(pictures).mode() for pictures in _batches(images, settings, device)])
    model.register_to_config(scaling_factor=unscaled.scaling_factor / float(latents.std()))
    return KLAutoencoder(model).fold()


def _batches(images: Tensor, settings: AutoencoderTraining, device: torch.device) -> Iterator[Tensor]:
    for part in torch.split(images, settings.batch_size):
        yield prepare_images(part, settings.image_size, 3).to(device)


def _new_model(settings: AutoencoderTraining) -> Any:
    n_levels = len(settings.block_channels)
    model: Any = require_diffusers()(
        block_out_channels=settings.block_channels,
        down_block_types=("DownEncoderBlock2D",) * n_levels,
        up_block_types=("UpDecoderBlock2D",) * n_levels,
        layers_per_block=settings.layers_per_block,
        latent_channels=settings.latent_channels,
        norm_num_groups=settings.n_groups,
        sample_size=settings.image_size,
        # Attention over all pixels costs as much as the convolutions here, and the blocks see far enough without.
        mid_block_add_attention=False,
    )
    # With the usual zero, noise as large as the latents hides them from the decoder at first.
    with torch.no_grad():
        model.quant_conv.bias[settings.latent_channels :] = INITIAL_LOGVAR
    return model


def _rate_share(step: int, n_steps: int) -> float:
    """Return the learning rate's share of the largest: a linear rise, then a half cosine down."""
    n_rising = max(1, round(WARM_UP_SHARE * n_steps))
    if step < n_rising:
        return (step + 1) / n_rising
    done = (step - n_rising) / max(n_steps - n_rising, 1)
    return LAST_RATE_SHARE + (1 - LAST_RATE_SHARE) * (1 + math.cos(math.pi * done)) / 2


def _finite(losses: list[Tensor], step: int) -> float:
    value = float(torch.stack(losses).mean())
    if not math.isfinite(value):
        raise FloatingPointError(f"the training loss is {value} near step {step}; lower learning_rate")
    return value
