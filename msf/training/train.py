"""Training: a loop that can be killed at any moment and goes on where it was.

Everything random in a step is a function of (seed, step) alone: order, flips, times, dequantisation and noise. A
resumed run therefore sees what the uninterrupted run would have seen.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from msf.config import ExperimentConfig, TaskConfig
from msf.data import ImageDataset, epoch_batches, seeded_generator
from msf.device import choose_device
from msf.evaluate import evaluate
from msf.files.atomic import write_atomically
from msf.flow.path import sample_times
from msf.medsymmflow import MedSymmFlow
from msf.plain_values import shown
from msf.training.ema import weight_average
from msf.training.images import TrainingImages, validation_latents
from msf.training.losses import symmetric_loss
from msf.training.state import read_training_state, require_state_of_run
from msf_kernels import symmetric_path

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_FILE = "training_state.pt"
HISTORY_FILE = "history.json"
# A loss is read from the device only this often, so that a step does not wait for it.
REPORT_EVERY = 10
# Keeps the draws of a step apart from those of an epoch's order.
STEP_STREAM = 1
VALIDATION_FIGURES = ("accuracy", "balanced_accuracy", "auc_macro_ovr")


@dataclass(frozen=True)
class TrainingProgress:
    """What a progress callback is told.

    Args:
        step: Optimiser steps done, of `n_steps`.
        n_steps: Steps of the whole run.
        epoch: Current epoch, from 0.
        loss: Mean training loss since the last report.
        validation: Figures of the last validation, None before the first.
    """

    step: int
    n_steps: int
    epoch: int
    loss: float
    validation: dict[str, Any] | None


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Args:
        folder: Holds the checkpoint of the best epoch.
        best_epoch: From 0.
        best_value: Its value of the selection figure, on the validation split.
        history: One dictionary per epoch.
        seconds: Training time of all parts of the run, validation included.
    """

    folder: Path
    best_epoch: int
    best_value: float
    history: list[dict[str, Any]]
    seconds: float


@dataclass
class _Position:
    """Where a run stands; saved as plain values."""

    step: int = 0
    epoch_loss: float = 0.0  # sum over the steps of the unfinished epoch
    best_epoch: int = -1
    best_value: float = -math.inf
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


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

    The test split is never read. `folder` gets `config.json` and `model.safetensors` (the averaged weights of the best
    epoch, with the autoencoder of a flow on latents), `training_state.pt` (for `resume`) and `history.json`.

    Args:
        experiment: What to train and how.
        dataset: Pictures and labels.
        folder: Created if missing.
        device: `cpu`, or a CUDA device; default: CUDA if there is any, else the CPU. Of several GPUs the run takes the
            one that its process is given (`accelerate launch`, or CUDA_VISIBLE_DEVICES).
        resume: Go on from the folder's training state, or start if it has none.
        latent_cache: For a flow on latents: encode all pictures before the first step, or take them from the disk where
            an earlier run left them (see `msf.autoencoder.latent_cache`). The losses are the same without, only later.
        progress: Called every few steps.
        encoding_progress: Called as `encoding_progress(n_done, n_total)` while pictures are encoded beforehand.

    Returns:
        The best epoch and the history.

    Raises:
        ValueError: The folder holds a run and `resume` is false; or it holds a run of another configuration, other
            data or another autoencoder; or the data do not fit the configuration; or the device is not this process's.
        FileNotFoundError: The autoencoder is not to be had.
        FloatingPointError: The loss is not finite; the last saved state stays.

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
    with torch.random.fork_rng():
        run = TrainingRun(experiment, dataset, Path(folder), accelerator, resume)
        run.encode_images(latent_cache, encoding_progress)
        return run.train(progress)


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
        folder: Created if missing.
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
        self.experiment = experiment
        self.settings = experiment.train
        self.dataset = dataset
        self.folder = folder
        self.accelerator = accelerator
        self.device = accelerator.device
        self.task = TaskConfig(
            n_classes=dataset.n_classes,
            image_channels=dataset.n_channels,
            class_names=dataset.class_names,
            is_ordinal=dataset.is_ordinal,
            original_size=dataset.image_size,
        )
        has_one_class = bool((dataset.val.labels == dataset.val.labels[0]).all())
        if experiment.train.selection == "auc_macro_ovr" and has_one_class:
            raise ValueError(
                "selection must be accuracy or balanced_accuracy where the val split holds a single class; "
                "got 'auc_macro_ovr'"
            )
        self.steps_per_epoch = math.ceil(len(dataset.train) / self.settings.batch_size)
        self.n_steps = self.steps_per_epoch * self.settings.epochs
        self.position = _Position()

        torch.manual_seed(self.settings.seed)
        self.flow = flow = MedSymmFlow(self.task, experiment).to(self.device)
        # Averaged before `prepare`, which may wrap the network.
        self.average = weight_average(flow.network, self.settings.ema_decay)
        self.averaged_flow = MedSymmFlow(
            self.task, experiment, network=self.average.module, autoencoder=flow.autoencoder
        )
        optimizer = torch.optim.AdamW(
            flow.network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        self.network, self.optimizer = accelerator.prepare(flow.network, optimizer)
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
        position = self.position
        started = time.monotonic() - position.seconds
        saved = time.monotonic()
        first_epoch, first_batch = divmod(position.step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.settings.epochs):
            self.network.train()
            loss_sum = torch.tensor(position.epoch_loss, dtype=torch.float64, device=self.device)
            batches = epoch_batches(
                len(self.dataset.train), self.settings.batch_size, self.settings.seed, epoch, first_batch=first_batch
            )
            for batch, rows in enumerate(batches, start=first_batch + 1):
                loss_sum += self.step(rows)
                position.step += 1
                ends_epoch = batch == self.steps_per_epoch
                if ends_epoch or batch % REPORT_EVERY == 0:
                    position.epoch_loss = self._finite(loss_sum)
                    self._report(progress, epoch, position.epoch_loss / batch)
                    position.seconds = time.monotonic() - started
                    if not ends_epoch and time.monotonic() - saved > self.settings.checkpoint_seconds:
                        self._save_state()
                        saved = time.monotonic()
            self._finish_epoch(epoch, position.epoch_loss / self.steps_per_epoch)
            first_batch, position.epoch_loss = 0, 0.0
            position.seconds = time.monotonic() - started
            self._save_state()
            saved = time.monotonic()
        return TrainingResult(self.folder, position.best_epoch, position.best_value, position.history, position.seconds)

    def step(self, rows: Tensor) -> Tensor:
        """Take one optimiser step on the pictures of a batch; return its loss, 0-dim, on the device."""
        settings, step = self.settings, self.position.step
        learning_rate = self._learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        torch.manual_seed(settings.seed + step)  # dropout

        # Flips, times and noise are drawn for the whole batch on the host, so that they do not depend on how many
        # processes share it; each then works on its own rows.
        generator = seeded_generator(settings.seed, STEP_STREAM, step)
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        image = self.images.batch(rows, generator, mine)
        semantic = self.flow.semantic_maps(self.dataset.train.labels[rows], generator)[mine]
        t = sample_times(len(rows), self.experiment.path, generator)[mine]
        sample_index = step * settings.batch_size + torch.arange(len(rows))[mine]
        image, semantic, t, sample_index = (
            part.to(self.device, non_blocking=True) for part in (image, semantic, t, sample_index)
        )
        z_t, dz_t = symmetric_path(
            image,
            semantic,
            t,
            sample_index=sample_index,
            seed=settings.seed,
            sigma_min=self.experiment.path.sigma_min,
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            velocity = self.network(z_t, t)
        loss = symmetric_loss(velocity, dz_t, image.shape[1], self.experiment.path.image_weight).total
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if settings.gradient_clip:
            self.accelerator.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        self.optimizer.step()
        self.average.update_parameters(self.accelerator.unwrap_model(self.network))
        return loss.detach()

    def _learning_rate(self, step: int) -> float:
        """Return the rate of a one-cycle schedule: a half cosine up, a half cosine down."""
        settings = self.settings
        low, high = settings.min_learning_rate, settings.learning_rate
        n_rising = settings.warmup_share * self.n_steps
        n_falling = max(self.n_steps - 1 - n_rising, 1)
        share = 1 - step / n_rising if step < n_rising else (step - n_rising) / n_falling
        return low + (high - low) * (1 + math.cos(math.pi * min(share, 1.0))) / 2

    def _finite(self, loss_sum: Tensor) -> float:
        value = float(loss_sum)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the training loss is {value} near step {self.position.step}; lower learning_rate "
                f"({self.settings.learning_rate}) or use precision 'fp32'; the last good state is kept"
            )
        return value

    def _report(self, progress: Callable[[TrainingProgress], None] | None, epoch: int, loss: float) -> None:
        if progress is not None and self.accelerator.is_main_process:
            position = self.position
            last = position.history[-1] if position.history else None
            progress(TrainingProgress(position.step, self.n_steps, epoch, loss, last))

    def _finish_epoch(self, epoch: int, loss: float) -> None:
        """Validate the averaged weights and keep them if they are the best so far."""
        metrics = evaluate(
            self.averaged_flow,
            self.dataset,
            split="val",
            latents=self.val_latents,
            n_samples=self.settings.validation_samples,
            seed=self.settings.seed,
        )
        figures = {name: metrics[name] for name in VALIDATION_FIGURES}
        position = self.position
        position.history.append({"epoch": epoch, "train_loss": loss, **figures})
        if figures[self.settings.selection] > position.best_value:
            position.best_epoch, position.best_value = epoch, figures[self.settings.selection]
            if self.accelerator.is_main_process:
                self.averaged_flow.save_pretrained(self.folder)

    def _save_state(self) -> None:
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        state = {
            "experiment": self.experiment.to_dict(),
            "data_fingerprint": self.dataset.fingerprint,
            "autoencoder_fingerprint": self.flow.autoencoder.fingerprint,
            "network": self.accelerator.unwrap_model(self.network).state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": asdict(self.position),
        }
        write_atomically(self.folder / STATE_FILE, lambda path: torch.save(state, path))
        history = json.dumps(self.position.history, indent=2) + "\n"
        write_atomically(self.folder / HISTORY_FILE, lambda path: path.write_text(history))

    def _restore(self, resume: bool) -> None:
        path = self.folder / STATE_FILE
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            return
        if not resume:
            raise ValueError(f"folder {str(self.folder)!r} holds a training run: resume it, or choose another folder")
        state = read_training_state(path)
        # Through JSON, which turns the tuples of both into lists.
        saved, wanted = json.loads(json.dumps([state["experiment"], self.experiment.to_dict()]))
        if saved != wanted:
            differences = "; ".join(_differences(saved, wanted))
            raise ValueError(f"folder {str(self.folder)!r} holds a run of another configuration: {differences}")
        if state["data_fingerprint"] != self.dataset.fingerprint:
            raise ValueError(f"folder {str(self.folder)!r} holds a run on other data than {self.dataset.name!r} is now")
        autoencoder = self.flow.autoencoder.fingerprint
        if state.get("autoencoder_fingerprint", autoencoder) != autoencoder:
            raise ValueError(f"folder {str(self.folder)!r} holds a run with another autoencoder than there is now")
        network = self.accelerator.unwrap_model(self.network)
        require_state_of_run(state, path, network, self.average, self.optimizer, self.n_steps)
        network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.position = _Position(**state["position"])


def _differences(saved: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for group, fields in wanted.items():
        found = saved.get(group)
        for name, value in fields.items():
            was = found.get(name) if isinstance(found, dict) else None
            if was != value:
                yield f"{group}.{name} was {shown(was)}, now {value!r}"
