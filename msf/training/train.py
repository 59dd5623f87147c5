"""Training: a loop that can be interrupted or killed at any moment and goes on where it was.

Everything random in a step is a function of (seed, step) alone: order, flips, times, dequantisation and noise. A
resumed run therefore sees what the uninterrupted run would have seen.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from msf.config import ExperimentConfig, Selection
from msf.data import ImageDataset, epoch_batches, hold_out_calibration
from msf.files.claim import claimed_folder
from msf.files.state import STATE_FILE
from msf.interruption import Interrupted, disturbed, save_at_last, undisturbed
from msf.judge.uncertainty import InvalidPredictionError
from msf.medsymmflow import MedSymmFlow
from msf.precision import training_precision
from msf.ranks import ProcessLostError
from msf.training.ema import weight_average
from msf.training.folder import HISTORY_FILE, RunFolder
from msf.training.images import TrainingImages, validation_latents
from msf.training.initial import TakenOver, start_from
from msf.training.processes import Processes, accelerator_on
from msf.training.progress import Position, TrainingProgress, TrainingResult, is_better
from msf.training.reporting import Reporter
from msf.training.schedule import Schedule
from msf.training.state import require_state_of_run
from msf.training.step import GradientStep
from msf.training.suitability import require_suitable, warn_of_dependent_code
from msf.training.tracking import make_trackers, tracker_names
from msf.training.validation import Validation, write_preview

__all__ = ["HISTORY_FILE", "STATE_FILE", "TrainingProgress", "TrainingResult", "TrainingRun", "train"]

# A loss is read from the device only this often, so that a step does not wait for it; sooner where steps are slow.
REPORT_EVERY = 10
REPORT_SECONDS = 10.0

_log = logging.getLogger(__name__)


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
    epoch, with the autoencoder of a flow on latents), `training_state.pt` (for `resume`), `history.json` and the same
    as `metrics.csv`. Whatever ends the training early carries a note (`__notes__`) on what of it the folder keeps.
    Ctrl-C saves the state first.

    Several processes (`torchrun`, `accelerate launch`) share every batch and every validation; the main one reads and
    writes the folder.

    Args:
        experiment: What to train and how.
        dataset: Pictures and labels.
        folder: Created if missing.
        device: `cpu`, or a CUDA device; default: CUDA if there is any, else the CPU. Of several GPUs the run takes the
            one that its process is given (`accelerate launch`, or CUDA_VISIBLE_DEVICES).
        resume: Go on from the folder's training state, or start if it has none. An extension (`train.extensions`)
            goes on without.
        latent_cache: For a flow on latents: encode all pictures before the first step, or take them from the disk where
            an earlier run left them (see `msf.autoencoder.latent_cache`). The losses are the same without, only later.
        progress: Called every few steps, during validation, and when an epoch has ended.
        encoding_progress: Called as `encoding_progress(n_done, n_total)` while pictures are encoded beforehand.

    Returns:
        The best epoch and the history.

    Raises:
        ValueError: The folder holds a run and `resume` is false; or it holds a run of another configuration, other
            data or another autoencoder; or another training uses it; or the data do not fit the configuration; or the
            device is not this process's; or a run is to be extended that has not ended; or a tracker is not installed.
        FileNotFoundError: The autoencoder, or the network to start from, is not to be had.
        FloatingPointError: The loss or a weight is not finite; the last saved state, from before, stays.
        OSError: The folder is a file or cannot be written, or the disk is full; what was saved before stays.
        ProcessLostError: Another process of the run has ended; the text says which and why, where it is known.

    Numerics:
        Weights, optimiser and averages in float32; the network runs under bfloat16 autocast if the configuration says
        so. On one device, thread count and number of processes the run is reproducible bit for bit, resumed or not.
        Another number of processes or parts (`accumulate`) sees the same pictures, times, noise and dropout, and
        differs by rounding.

    Source:
        MedSymmFlow, arXiv 2507.19098.
    """
    processes = Processes(accelerator_on(device))
    claim = claimed_folder(folder, "training") if processes.is_main else nullcontext()
    # Fresh weights draw from the global generator; the caller's state comes back.
    with torch.random.fork_rng(), claim:
        run = None
        try:
            run = TrainingRun(experiment, dataset, Path(folder), processes, resume)
            run.encode_images(latent_cache, encoding_progress)
            return run.train(progress)
        except BaseException as error:
            ending = processes.lost(error) or error
            processes.tell(ending)
            if run is not None and processes.is_main:
                ending.add_note(run.folder.kept(run.n_steps))
            if ending is not error:
                raise ending from error
            raise


class TrainingRun:
    """One run: what a step needs, and where the run stands. `encode_images` comes first, then `train` or single steps.

    Args:
        experiment: What to train and how.
        dataset: Pictures and labels.
        folder: Exists when the run is trained.
        processes: Those that share the run, with the accelerator that decides on the device.
        resume: Take over the folder's training state, if it has one.
    """

    def __init__(
        self,
        experiment: ExperimentConfig,
        dataset: ImageDataset,
        folder: Path,
        processes: Processes,
        resume: bool,
    ) -> None:
        """Build networks and optimiser, and take over the training state."""
        self.settings = experiment.train
        self.dataset = dataset = hold_out_calibration(dataset, experiment.data.calibration_share)
        self.processes = processes
        self.accelerator = processes.accelerator
        self.device = self.accelerator.device
        self.precision = training_precision(experiment.train.precision, self.device)
        self.task = dataset.task
        self.experiment = experiment = experiment.settled(self.task)
        require_suitable(dataset, self.settings)
        self._tracker_names = tracker_names(self.settings.track)
        self.schedule = Schedule(self.settings, len(dataset.train))
        self.n_steps = self.schedule.n_steps
        self.position = Position()
        self._is_whole = True  # weights and position belong to the same step

        torch.manual_seed(self.settings.seed)
        self.flow = flow = MedSymmFlow(self.task, experiment).to(self.device)
        # The layout in which convolutions are fastest, forward and backward.
        flow.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        warn_of_dependent_code(flow.semantic_code)
        # Averaged before `prepare`, which may wrap the network.
        self.average = weight_average(flow.network, self.settings.ema_decay, self.settings.ema_length)
        self.averaged_flow = MedSymmFlow(
            self.task, experiment, network=self.average.module, autoencoder=flow.autoencoder
        )
        self.validation = Validation(self.averaged_flow, dataset, processes, self.schedule)
        optimizer = torch.optim.AdamW(
            flow.network.parameters(), lr=self.settings.learning_rate, weight_decay=self.settings.weight_decay
        )
        self.network, self.optimizer = self.accelerator.prepare(flow.network, optimizer)
        self._step = GradientStep(flow, self.network, processes, self.precision)
        self.folder = RunFolder(
            folder, experiment.to_dict(), dataset.fingerprint, autoencoder_fingerprint=flow.autoencoder.fingerprint
        )
        self.taken_over = self._restore(resume or bool(self.settings.extensions))

    def encode_images(self, use_cache: bool, progress: Callable[[int, int], None] | None) -> None:
        """Encode what is to be encoded before the first step."""
        self.images = TrainingImages(
            self.dataset,
            self.flow.space,
            self.experiment.data,
            use_cache=use_cache,
            device=self.device,
            progress=progress,
        )
        self.val_latents = validation_latents(
            self.dataset, self.flow.space, use_cache=use_cache, device=self.device, progress=progress
        )
        self.processes.wait()  # for those whose pictures are encoded elsewhere

    def train(self, progress: Callable[[TrainingProgress], None] | None) -> TrainingResult:
        """Take all steps that are left; `encode_images` has been called."""
        self._started = time.monotonic() - self.position.seconds
        self._saved = time.monotonic()
        self._reporter = self._begin(progress)
        try:
            while len(self.position.history) < self.schedule.n_epochs:
                self._run_epoch()
        except (Interrupted, KeyboardInterrupt, ProcessLostError) as error:
            self._save_at_last(error)
            raise
        finally:
            self._reporter.finish()
        position = self.position
        return TrainingResult(
            self.folder.path,
            position.best_epoch,
            position.best_value,
            position.history,
            position.seconds,
            device=str(self.device),
            precision=self.precision,
            n_processes=self.processes.n,
            taken_over=None if self.taken_over is None else self.taken_over.text(),
        )

    def _begin(self, progress: Callable[[TrainingProgress], None] | None) -> Reporter:
        """Return who tells of the run, and let the folder say where it stands, which a kill may have left behind."""
        position, trackers = self.position, []
        if self.processes.is_main and position.step:
            self.folder.write_history(position)
        if self.processes.is_main and len(position.history) < self.schedule.n_epochs:
            configuration = self.experiment.to_dict()
            trackers = make_trackers(self._tracker_names, self.folder.path, configuration, position.step)
        return Reporter(
            self.settings, self.schedule, progress if self.processes.is_main else None, trackers, position.step
        )

    def _run_epoch(self) -> None:
        """Take the epoch's steps that are left, validate, and save."""
        epoch = len(self.position.history)
        steps_per_epoch = self.schedule.steps_per_epoch
        first_batch = self.position.step - epoch * steps_per_epoch
        settings, n = self.settings, len(self.dataset.train)
        self.network.train()
        balanced_by = self.dataset.train.labels if settings.class_balanced else None
        batches = epoch_batches(
            n, settings.batch_size, settings.seed, epoch, first_batch=first_batch, balanced_by=balanced_by
        )
        with self.processes.watched():
            for batch, rows in enumerate(batches, start=first_batch + 1):
                with undisturbed():
                    terms = self.step(rows)
                    self._loss_sums += terms
                    self.position.step += 1
                    self._is_whole = True
                ends_epoch = batch == steps_per_epoch
                if ends_epoch or batch % REPORT_EVERY == 0 or self._reporter.seconds > REPORT_SECONDS:
                    self._reporter.tell(self.position, epoch, self._mean_terms(batch))
                    if not ends_epoch and time.monotonic() - self._saved > settings.checkpoint_seconds:
                        self._save_state()
            means = self._mean_terms(steps_per_epoch)
            self._finish_epoch(epoch, means)
        self._save_state()
        self._reporter.tell(self.position, epoch, means, validated=1.0)

    def step(self, rows: Tensor) -> Tensor:
        """Take one optimiser step on the pictures of a batch.

        Args:
            rows: Their numbers; int64 [B].

        Returns:
            Loss, image term and semantic term of the batch; float32 [3], on the device.
        """
        with disturbed():
            learning_rate = self.schedule.learning_rate(self.position.step)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            batch = self._step.draw(rows, self.position.step, self.images)
            terms = self._step.gradients(batch, self.images)
        self._is_whole = False
        self.optimizer.step()
        self.average.update_parameters(self.accelerator.unwrap_model(self.network))
        return terms

    def _mean_terms(self, n: int) -> list[float]:
        """Return the means over n steps of the unfinished epoch's losses; raise where the training has diverged."""
        sums = self._loss_sums.tolist()
        if not math.isfinite(sums[0]):
            raise self._diverged(f"the training loss is {sums[0]}")
        position = self.position
        position.epoch_loss, position.epoch_image_loss, position.epoch_semantic_loss = sums
        return [value / n for value in sums]

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"{what} near step {self.position.step}: start again in another folder with a lower learning_rate "
            f"({self.settings.learning_rate}) or precision 'fp32'"
        )

    def _finish_epoch(self, epoch: int, terms: list[float]) -> None:
        """Validate the averaged weights where the epoch is one to validate; keep them if they are the best so far."""
        if not all(tensor.isfinite().all() for tensor in self.average.module.state_dict().values()):
            raise self._diverged("a weight is not finite")
        settings, position = self.settings, self.position
        figures: dict[str, Any] = dict.fromkeys(get_args(Selection))
        best: dict[str, Any] = {}
        if self.validation.is_due(epoch):
            try:
                metrics = self.validation.metrics(
                    self.val_latents,
                    lambda done, total: self._reporter.tell(position, epoch, terms, min(done / total, 0.99)),
                )
            except InvalidPredictionError as error:
                raise self._diverged(f"validation failed ({error})") from error
            figures = {name: metrics[name] for name in figures}
            value = figures[settings.selection]
            if is_better(value, position.best_value, settings.selection):
                best = {"best_epoch": epoch, "best_value": value}
                if self.processes.is_main:
                    self.averaged_flow.save_pretrained(self.folder.path)
            if self.processes.is_main and settings.preview_every and (epoch + 1) % settings.preview_every == 0:
                write_preview(self.averaged_flow, metrics, self.folder.path, f"epoch-{epoch + 1:05d}", settings.seed)
        if self.processes.is_main and settings.keep_last:
            self.folder.keep_epoch(self.averaged_flow.save_pretrained, epoch, settings.keep_last)
        row = {"epoch": epoch, "train_loss": terms[0], "image_loss": terms[1], "semantic_loss": terms[2], **figures}
        with undisturbed():
            self._is_whole = False
            self.position = replace(
                position,
                epoch_loss=0.0,
                epoch_image_loss=0.0,
                epoch_semantic_loss=0.0,
                history=[*position.history, row],
                **best,
            )
            self._loss_sums.zero_()
            self._is_whole = True

    def _save_state(self) -> None:
        self._mean_terms(1)
        self.position.seconds = time.monotonic() - self._started
        if self.processes.is_main:
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

    def _restore(self, resume: bool) -> TakenOver | None:
        """Take over the folder's state, or the weights that the run is to start from; return what was taken of these.

        The main process reads and the others are told, so that only its machine needs the folder.
        """
        network = self.accelerator.unwrap_model(self.network)

        def check(state: Mapping[str, Any], path: Path) -> None:
            require_state_of_run(state, path, network, self.average, self.optimizer, self.n_steps)

        first_end = self.schedule.cycle_ends[0]
        restored = self.processes.from_main(lambda: self.folder.restore(check, resume=resume, first_end=first_end))
        taken_over = None
        if restored is not None:
            state, self.position = restored
            network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        elif self.settings.init is not None:
            taken_over = start_from(self.flow, self.settings.init)
            if self.processes.is_main:
                _log.warning("%s", taken_over.text())
        position = self.position
        sums = [position.epoch_loss, position.epoch_image_loss, position.epoch_semantic_loss]
        self._loss_sums = torch.tensor(sums, dtype=torch.float64, device=self.device)
        return taken_over
