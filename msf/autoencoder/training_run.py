"""The steps of an autoencoder's training: colours first, then pictures; a state to go on from after any of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msf.autoencoder.kl import require_diffusers
from msf.autoencoder.losses import autoencoder_loss
from msf.autoencoder.settings import AutoencoderProgress, AutoencoderTraining, Stage
from msf.data import ImageDataset, apply_flips, draw_flips, epoch_batches, prepare_images, seeded_generator
from msf.files.damage import first_line
from msf.files.state import StateFile
from msf.files.tensors import require_matching_tensors
from msf.interruption import Interrupted, disturbed, save_at_last, undisturbed

# A loss is read from the device only this often, so that a step does not wait for it; sooner where steps are slow.
REPORT_EVERY = 10
REPORT_SECONDS = 10.0
SAVE_SECONDS = 60.0  # longest time between two saved states
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

Report = Callable[[AutoencoderProgress], None] | None
Make = Callable[[torch.Generator], Tensor]


class AutoencoderRun:
    """One training: its model, and where it stands.

    Args:
        dataset: Pictures.
        folder: Holds the state; exists when `train` is called.
        settings: What is trained and how.
        device: Where.
        resume: Take over the folder's state, if it has one.
    """

    def __init__(
        self, dataset: ImageDataset, folder: Path, settings: AutoencoderTraining, device: torch.device, *, resume: bool
    ) -> None:
        """Build the model, and take over the state."""
        self._started = time.monotonic()
        self._images = dataset.train.images
        self._settings = settings
        self._device = device
        self.steps_per_epoch = math.ceil(len(self._images) / settings.batch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = _new_model(settings).to(device)
        # Edges between tiles are not what is to be learned from mosaics.
        mosaics = replace(settings, gradient_weight=0.0)
        self._colours = _Steps(self.model, mosaics, settings.colour_steps, MOSAIC_RATE)
        n_steps = settings.epochs * self.steps_per_epoch
        self._pictures = _Steps(self.model, settings, n_steps, settings.learning_rate)
        self.history: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []  # of the mosaics, or of the unfinished epoch
        self._is_whole = True  # model, losses and history belong to the same step
        sources = {"data_fingerprint": (dataset.fingerprint, "on other data")}
        self.state = StateFile(folder, "settings", asdict(settings), sources)
        fields = ("model", "colours", "pictures", "history", "losses", "seconds")
        state = self.state.restore(fields, resume=resume)
        if state is not None:
            self._take_over(state)

    def _take_over(self, state: Mapping[str, Any]) -> None:
        where = repr(str(self.state.path))
        try:
            require_matching_tensors(self.model.state_dict(), state["model"], f"model of {where}")
            self.model.load_state_dict(state["model"])
            self._colours.load_state_dict(state["colours"])
            self._pictures.load_state_dict(state["pictures"])
            self.history, self._losses = list(state["history"]), [loss.to(self._device) for loss in state["losses"]]
            self._started -= float(state["seconds"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = first_line(error)
            raise ValueError(f"{where} must be the state of a training of autoencoders; got: {reason}") from error
        self.state.saved_step = self._n_done

    @property
    def n_steps(self) -> int:
        """Steps of both stages."""
        return self._colours.n_steps + self._pictures.n_steps

    @property
    def seconds(self) -> float:
        """Time since the run was made, with that of the parts before it."""
        return time.monotonic() - self._started

    def train(self, progress: Report) -> None:
        """Take all steps that are left.

        Raises:
            FloatingPointError: The loss or a weight is not finite; the last saved state, from before, stays.
            OSError: The disk is full; likewise.
        """
        self._saved = time.monotonic()
        try:
            self._fit_colours(progress)
            while len(self.history) < self._settings.epochs:
                self._run_epoch(progress)
            self._save()  # what comes now takes long as well
        except (Interrupted, KeyboardInterrupt) as error:
            self._save_at_last(error)
            raise

    def _fit_colours(self, progress: Report) -> None:
        """Teach a new model colours, on small mosaics of random ones.

        Norms take a picture's colour away, and the few colours of real pictures hardly bring it back: a model that
        starts with pictures encodes brightness and texture, and leaves hues for much later.
        """
        size = MOSAIC_LATENTS * 2 ** (len(self._settings.block_channels) - 1)
        n_left = range(self._colours.n_done, self._colours.n_steps)

        def mosaics(generator: torch.Generator) -> Tensor:
            colours = torch.rand(MOSAIC_BATCH, 3, MOSAIC_TILES, MOSAIC_TILES, generator=generator) * 2 - 1
            return nn.functional.interpolate(colours, size=(size, size))

        self._take(self._colours, MOSAIC_STREAM, (mosaics for _ in n_left), "colours", progress)
        if not self._pictures.n_done:
            self._losses = []

    def _run_epoch(self, progress: Report) -> None:
        """Take the epoch's steps that are left."""
        settings, epoch = self._settings, len(self.history)

        def pictures_of(rows: Tensor) -> Make:
            def pictures(generator: torch.Generator) -> Tensor:
                pictures = prepare_images(self._images[rows], settings.image_size, 3)
                pictures = apply_flips(pictures, draw_flips(len(rows), generator))
                return _with_plain_colours(pictures, settings.plain_share, generator)

            return pictures

        first_batch = self._pictures.n_done - epoch * self.steps_per_epoch
        batches = epoch_batches(len(self._images), settings.batch_size, settings.seed, epoch, first_batch=first_batch)
        last = self._take(self._pictures, STEP_STREAM, (pictures_of(rows) for rows in batches), "pictures", progress)
        loss = self._finite(self._losses)
        history = [*self.history, {"epoch": epoch, "train_loss": loss}]
        with undisturbed():
            self._is_whole = False
            self.history, self._losses = history, []
            self._is_whole = True
        self._report(progress, self._pictures, last, "pictures")
        self._save_now_and_then()

    def _take(
        self, steps: _Steps, stream: int, batches: Iterable[Make], stage: Stage, progress: Report
    ) -> Sequence[Tensor]:
        """Take a step on every batch; return the losses that were not reported, those of the last steps."""
        n_reported, reported = 0, time.monotonic()
        n_last = steps.n_steps if stage == "colours" else (len(self.history) + 1) * self.steps_per_epoch
        for make in batches:
            with undisturbed():
                generator = seeded_generator(self._settings.seed, stream, steps.n_done)
                with disturbed():
                    loss = steps.gradients(make(generator).to(self._device), generator)
                self._is_whole = False
                steps.update()
                self._losses.append(loss)
                self._is_whole = True
            is_due = steps.n_done % REPORT_EVERY == 0 or time.monotonic() - reported > REPORT_SECONDS
            if is_due and steps.n_done < n_last:
                self._report(progress, steps, self._losses[n_reported:], stage)
                n_reported, reported = len(self._losses), time.monotonic()
                self._save_now_and_then()
        return self._losses[n_reported:]

    def _report(self, progress: Report, steps: _Steps, losses: Sequence[Tensor], stage: Stage) -> None:
        loss = self._finite(losses)
        if progress is not None:
            progress(AutoencoderProgress(steps.n_done, steps.n_steps, loss, stage, len(self.history)))

    def _finite(self, losses: Sequence[Tensor]) -> float:
        value = float(torch.stack(tuple(losses)).mean())
        if not math.isfinite(value):
            raise self._diverged(f"the training loss is {value}")
        return value

    def _diverged(self, what: str) -> FloatingPointError:
        rate = self._settings.learning_rate
        return FloatingPointError(
            f"{what} near step {self._n_done}: start again in another folder with a lower learning_rate ({rate})"
        )

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self._save()

    def _save(self) -> None:
        content = {
            "model": self.model.state_dict(),
            "colours": self._colours.state_dict(),
            "pictures": self._pictures.state_dict(),
            "history": self.history,
            "losses": torch.stack(self._losses) if self._losses else torch.empty(0),
            "seconds": self.seconds,
        }
        try:
            self.state.save(content, self._n_done)
        except FloatingPointError as error:
            raise self._diverged(str(error)) from error
        self._saved = time.monotonic()

    def _save_at_last(self, interruption: BaseException) -> None:
        if self._is_whole:
            save_at_last(self._save, interruption, f"step {self._n_done}")

    @property
    def _n_done(self) -> int:
        return self._colours.n_done + self._pictures.n_done


class _Steps:
    """Optimiser steps one after the other, at a learning rate that rises and falls over all of them."""

    def __init__(self, model: nn.Module, settings: AutoencoderTraining, n_steps: int, learning_rate: float) -> None:
        self.n_done = 0
        self.n_steps = n_steps
        self._model = model.train()
        self._settings = settings
        self._learning_rate = learning_rate
        self._optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.99))

    def gradients(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Leave the gradients of a loss with the weights; return the loss, 0-dim, on the device."""
        settings, model = self._settings, self._model
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
        return loss.detach()

    def update(self) -> None:
        """Follow the gradients."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._learning_rate * _rate_share(self.n_done, self.n_steps)
        self._optimizer.step()
        self.n_done += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes; without the optimiser's where all steps are done."""
        is_done = self.n_done == self.n_steps
        return {"n_done": self.n_done, "optimizer": {} if is_done else self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over where others were."""
        self.n_done = state["n_done"]
        if state["optimizer"]:
            self._optimizer.load_state_dict(state["optimizer"])


def _with_plain_colours(pictures: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace pictures by one random colour each, with a probability."""
    n = len(pictures)
    is_plain = torch.rand(n, generator=generator) < share
    colours = torch.rand(n, 3, generator=generator) * 2 - 1
    return torch.where(is_plain[:, None, None, None], colours[:, :, None, None], pictures)


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
