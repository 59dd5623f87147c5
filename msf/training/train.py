"""Training: a loop that can be interrupted or killed at any moment and goes on where it was.

Everything random in a step is a function of (seed, step) alone: order, flips, times, dequantisation and noise. A
resumed run therefore sees what the uninterrupted run would have seen.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from msf.config import ExperimentConfig, Selection
from msf.data import ImageDataset, epoch_batches, hold_out_calibration, seeded_generator
from msf.device import choose_device
from msf.evaluate import evaluate
from msf.files.claim import claimed_folder
from msf.files.state import STATE_FILE
from msf.flow.path import sample_times
from msf.interruption import Interrupted, disturbed, save_at_last, undisturbed
from msf.judge.uncertainty import InvalidPredictionError
from msf.medsymmflow import MedSymmFlow
from msf.precision import training_precision
from msf.training.dropping import LabelDrop
from msf.training.ema import weight_average
from msf.training.folder import HISTORY_FILE, RunFolder
from msf.training.images import TrainingImages, validation_latents
from msf.training.losses import symmetric_loss
from msf.training.progress import Position, TrainingProgress, TrainingResult, is_better
from msf.training.state import require_state_of_run
from msf.training.suitability import require_suitable, warn_of_dependent_code
from msf.training.weighting import weighted
from msf_kernels import symmetric_path

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["HISTORY_FILE", "STATE_FILE", "TrainingProgress", "TrainingResult", "TrainingRun", "train"]

# A loss is read from the device only this often, so that a step does not wait for it; sooner where steps are slow.
REPORT_EVERY = 10
REPORT_SECONDS = 10.0
# Keeps the draws of a step apart from those of an epoch's order.
STEP_STREAM = 1


def train(
    experiment: ExperimentConfig,
    dataset: ImageDataset,
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    resume: bool = False,
    latent_cache: bool = True,
    progress: Callable[[TrainingProgress], None] | None = None,
    encoding_progress: Callable[[int, int], None] | None = None,
) -> TrainingResult:
    """Train a velocity network on the `train` split and keep the epoch that is best on `val`.

    Neither test nor calibration pictures are read. `folder` gets `config.json`, `model.safetensors` (averaged weights
    of the best epoch, with the autoencoder of a flow on latents), `training_state.pt` (for `resume`), `history.json`.
    What ends the training early carries a note (`__notes__`) on what the folder keeps. Ctrl-C saves the state first.

    Args:
        experiment: What to train and how.
        dataset: Pictures and labels.
        folder: Created if missing.
        device: `cpu`, or a CUDA device; default: CUDA if there is any, else the CPU. Of several GPUs the run takes the
            one that its process is given (`accelerate launch`, or CUDA_VISIBLE_DEVICES).
        resume: Go on from the folder's training state, or start if it has none.
        latent_cache: For a flow on latents: encode all pictures before the first step, or take them from the disk where
            an earlier run left them (see `msf.autoencoder.latent_cache`). The losses are the same without, only later.
        progress: Called every few steps, during validation, and when an epoch has ended.
        encoding_progress: Called as `encoding_progress(n_done, n_total)` while pictures are encoded beforehand.

    Returns:
        The best epoch and the history.

    Raises:
        ValueError: The folder holds a run and `resume` is false; or it holds a run of another configuration, other
            data or another autoencoder; or another training uses it; or the data do not fit the configuration; or the
            device is not this process's.
        FileNotFoundError: The autoencoder is not to be had.
        FloatingPointError: The loss or a weight is not finite; the last saved state, from before, stays.
        OSError: The folder is a file or cannot be written, or the disk is full; what was saved before stays.

    Numerics:
        Weights, optimiser and averages in float32; the network runs under bfloat16 autocast if the configuration says
        so. On one device and thread count the run is reproducible bit for bit, resumed or not.

    Source:
        MedSymmFlow, arXiv 2507.19098.
    """
    from accelerate import Accelerator

    wanted = choose_device(device)
    # The precision is not the accelerator's: its state belongs to the process and could not change between two runs.
    accelerator = Accelerator(cpu=wanted.type == "cpu")
    if not _is_given(wanted, accelerator.device):
        raise ValueError(
            f"device must be {accelerator.device}, which this process was given; got {str(wanted)!r}. Choose another "
            "GPU with CUDA_VISIBLE_DEVICES"
        )
    # Dropout draws from the global generator, which is seeded per step; the caller's state comes back.
    claim = claimed_folder(folder, "training") if accelerator.is_main_process else nullcontext()
    with torch.random.fork_rng(), claim:
        run = TrainingRun(experiment, dataset, Path(folder), accelerator, resume)
        try:
            run.encode_images(latent_cache, encoding_progress)
            return run.train(progress)
        except BaseException as error:
            error.add_note(run.folder.kept(run.n_steps))
            raise


def _is_given(wanted: torch.device, given: torch.device) -> bool:
    """Return whether the device that is wanted is the one of this process; a process of its own has no index."""
    if wanted.type != given.type:
        return False
    if wanted.type != "cuda" or wanted.index is None:
        return True
    return wanted.index == (torch.cuda.current_device() if given.index is None else given.index)


class TrainingRun:
    """One run: what a step needs, and where the run stands. `encode_images` comes first, then `train` or single steps.

    Args:
        experiment: What to train and how.
        dataset: Pictures and labels.
        folder: Exists when the run is trained.
        accelerator: Decides on device and processes.
        resume: Take over the folder's training state, if it has one.
    """

    def __init__(
        self,
        experiment: ExperimentConfig,
        dataset: ImageDataset,
        folder: Path,
        accelerator: Accelerator,
        resume: bool,
    ) -> None:
        """Build networks and optimiser, and take over the training state."""
        self.settings = experiment.train
        self.dataset = dataset = hold_out_calibration(dataset, experiment.data.calibration_share)
        self.accelerator = accelerator
        self.device = accelerator.device
        self.precision = training_precision(experiment.train.precision, self.device)
        self.task = dataset.task
        self.experiment = experiment = experiment.settled(self.task)
        require_suitable(dataset, self.settings)
        self.steps_per_epoch = math.ceil(len(dataset.train) / self.settings.batch_size)
        self.n_epochs = self.settings.n_epochs(len(dataset.train))
        self.n_steps = self.steps_per_epoch * self.n_epochs
        self.position = Position()
        self._is_whole = True  # weights and position belong to the same step

        torch.manual_seed(self.settings.seed)
        self.flow = flow = MedSymmFlow(self.task, experiment).to(self.device)
        # The layout in which convolutions are fastest, forward and backward.
        flow.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        warn_of_dependent_code(flow.semantic_code)
        self._drop = LabelDrop(flow, self.settings.label_drop)
        # Averaged before `prepare`, which may wrap the network.
        self.average = weight_average(flow.network, self.settings.ema_decay, self.settings.ema_length)
        self.averaged_flow = MedSymmFlow(
            self.task, experiment, network=self.average.module, autoencoder=flow.autoencoder
        )
        optimizer = torch.optim.AdamW(
            flow.network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        self.network, self.optimizer = accelerator.prepare(flow.network, optimizer)
        self.folder = RunFolder(
            folder, experiment.to_dict(), dataset.fingerprint, autoencoder_fingerprint=flow.autoencoder.fingerprint
        )
        self._restore(resume)

    def encode_images(self, use_cache: bool, progress: Callable[[int, int], None] | None) -> None:
        """Encode what is to be encoded before the first step."""
        flips = self.experiment.data.flips
        self.images = TrainingImages(
            self.dataset,
            self.flow.space,
            flips=self.dataset.flips if flips is None else flips,
            use_cache=use_cache,
            device=self.device,
            progress=progress,
        )
        self.val_latents = validation_latents(
            self.dataset, self.flow.space, use_cache=use_cache, device=self.device, progress=progress
        )

    def train(self, progress: Callable[[TrainingProgress], None] | None) -> TrainingResult:
        """Take all steps that are left; `encode_images` has been called."""
        self._started = time.monotonic() - self.position.seconds
        self._saved = time.monotonic()
        try:
            while len(self.position.history) < self.n_epochs:
                self._run_epoch(progress)
        except (Interrupted, KeyboardInterrupt) as error:
            self._save_at_last(error)
            raise
        position = self.position
        return TrainingResult(
            self.folder.path, position.best_epoch, position.best_value, position.history, position.seconds
        )

    def _run_epoch(self, progress: Callable[[TrainingProgress], None] | None) -> None:
        """Take the epoch's steps that are left, validate, and save."""
        epoch = len(self.position.history)
        first_batch = self.position.step - epoch * self.steps_per_epoch
        settings, n, reported = self.settings, len(self.dataset.train), time.monotonic()
        self.network.train()
        balanced_by = self.dataset.train.labels if settings.class_balanced else None
        batches = epoch_batches(
            n, settings.batch_size, settings.seed, epoch, first_batch=first_batch, balanced_by=balanced_by
        )
        for batch, rows in enumerate(batches, start=first_batch + 1):
            with undisturbed():
                loss = self.step(rows)
                self._loss_sum += loss
                self.position.step += 1
                self._is_whole = True
            ends_epoch = batch == self.steps_per_epoch
            if ends_epoch or batch % REPORT_EVERY == 0 or time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                self._report(progress, epoch, self._finite_loss() / batch)
                if not ends_epoch and time.monotonic() - self._saved > settings.checkpoint_seconds:
                    self._save_state()
        self._finish_epoch(epoch, self._finite_loss() / self.steps_per_epoch, progress)
        self.accelerator.wait_for_everyone()
        self._save_state()
        self._report(progress, epoch, self.position.history[-1]["train_loss"], validated=1.0)

    def step(self, rows: Tensor) -> Tensor:
        """Take one optimiser step on the pictures of a batch; return its loss, 0-dim, on the device."""
        with disturbed():
            loss = self._gradients(rows)
        self._is_whole = False
        self.optimizer.step()
        self.average.update_parameters(self.accelerator.unwrap_model(self.network))
        return loss.detach()

    def _gradients(self, rows: Tensor) -> Tensor:
        """Leave the gradients of a batch's loss with the weights; return the loss."""
        settings, step = self.settings, self.position.step
        learning_rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        torch.manual_seed(settings.seed + step)  # dropout

        # Flips, times and noise are drawn for the whole batch on the host, so that they do not depend on how many
        # processes share it; each then works on its own rows.
        generator = seeded_generator(settings.seed, STEP_STREAM, step)
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        image, labels = self.images.batch(rows, generator, mine)
        maps = self.flow.semantic_maps(labels, generator)
        t = sample_times(len(rows), self.experiment.path, generator)[mine]
        semantic, is_labelled = self._drop(maps, generator)
        sample_index = step * settings.batch_size + torch.arange(len(rows))[mine]
        image, semantic, t, sample_index = (
            part.to(self.device, non_blocking=True) for part in (image, semantic[mine], t, sample_index)
        )
        if is_labelled is not None:
            is_labelled = is_labelled[mine].to(self.device, non_blocking=True)
        z_t, dz_t = symmetric_path(
            image,
            semantic,
            t,
            sample_index=sample_index,
            seed=settings.seed,
            sigma_min=self.experiment.path.sigma_min,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            velocity = self.network(z_t, t)
        path, n_image = self.experiment.path, image.shape[1]
        velocity, dz_t = (weighted(each, t, n_image, path.loss_weighting) for each in (velocity, dz_t))
        loss = symmetric_loss(velocity, dz_t, n_image, path.image_weight, is_labelled).total
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if settings.gradient_clip:
            self.accelerator.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        return loss

    def _learning_rate(self, step: int) -> float:
        """Return the rate of a one-cycle schedule: a half cosine up, a half cosine down."""
        settings = self.settings
        low, high = settings.min_learning_rate, settings.learning_rate
        n_rising = settings.warmup_share * self.n_steps
        n_falling = max(self.n_steps - 1 - n_rising, 1)
        share = 1 - step / n_rising if step < n_rising else (step - n_rising) / n_falling
        return low + (high - low) * (1 + math.cos(math.pi * min(share, 1.0))) / 2

    def _finite_loss(self) -> float:
        """Return the sum of the unfinished epoch's losses; raise where the training has diverged."""
        value = float(self._loss_sum)
        if not math.isfinite(value):
            raise self._diverged(f"the training loss is {value}")
        self.position.epoch_loss = value
        return value

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"{what} near step {self.position.step}: start again in another folder with a lower learning_rate "
            f"({self.settings.learning_rate}) or precision 'fp32'"
        )

    def _report(
        self,
        progress: Callable[[TrainingProgress], None] | None,
        epoch: int,
        loss: float,
        validated: float | None = None,
    ) -> None:
        if progress is not None and self.accelerator.is_main_process:
            position = self.position
            last = position.history[-1] if position.history else None
            progress(TrainingProgress(position.step, self.n_steps, epoch, self.n_epochs, loss, last, validated))

    def _finish_epoch(self, epoch: int, loss: float, progress: Callable[[TrainingProgress], None] | None) -> None:
        """Validate the averaged weights and keep them if they are the best so far."""
        if not all(tensor.isfinite().all() for tensor in self.average.module.state_dict().values()):
            raise self._diverged("a weight is not finite")
        try:
            metrics = evaluate(
                self.averaged_flow,
                self.dataset,
                split="val",
                latents=self.val_latents,
                n_samples=self.settings.validation_samples,
                seed=self.settings.seed,
                progress=lambda n_done, n_total: self._report(progress, epoch, loss, min(n_done / n_total, 0.99)),
            )
        except InvalidPredictionError as error:
            raise self._diverged(f"validation failed ({error})") from error
        figures = {name: metrics[name] for name in get_args(Selection)}
        position = self.position
        selection = self.settings.selection
        is_best = is_better(figures[selection], position.best_value, selection)
        if is_best and self.accelerator.is_main_process:
            self.averaged_flow.save_pretrained(self.folder.path)
        best = {"best_epoch": epoch, "best_value": figures[selection]} if is_best else {}
        history = [*position.history, {"epoch": epoch, "train_loss": loss, **figures}]
        with undisturbed():
            self._is_whole = False
            self.position = replace(position, **best, history=history, epoch_loss=0.0)
            self._loss_sum.zero_()
            self._is_whole = True

    def _save_state(self) -> None:
        self._finite_loss()
        self.position.seconds = time.monotonic() - self._started
        if self.accelerator.is_main_process:
            tensors = {
                "network": self.accelerator.unwrap_model(self.network).state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            try:
                self.folder.save(tensors, self.position)
            except FloatingPointError as error:
                raise self._diverged(str(error)) from error
        self._saved = time.monotonic()

    def _save_at_last(self, interruption: BaseException) -> None:
        if self._is_whole:
            save_at_last(self._save_state, interruption, f"step {self.position.step}")

    def _restore(self, resume: bool) -> None:
        network = self.accelerator.unwrap_model(self.network)

        def check(state: Mapping[str, Any], path: Path) -> None:
            require_state_of_run(state, path, network, self.average, self.optimizer, self.n_steps)

        restored = self.folder.restore(check, resume=resume)
        if restored is not None:
            state, self.position = restored
            network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        self._loss_sum = torch.tensor(self.position.epoch_loss, dtype=torch.float64, device=self.device)
