"""What a training will need, from a few of its steps: nothing is written, and the steps are thrown away."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from msf.config import ExperimentConfig
from msf.data import ImageDataset, epoch_batches
from msf.training.images import TrainingImages
from msf.training.processes import Processes, accelerator_on
from msf.training.train import TrainingRun

N_STEPS = 5  # the first one, which makes the optimiser's state and warms everything up, is not counted
_N_VALIDATED = 64
_STATE_COPIES = 4  # weights, average and two moments


@dataclass(frozen=True)
class Rehearsal:
    """What was found.

    Args:
        n_parameters: Of the network.
        n_epochs: Of the run.
        n_steps: Of the run.
        batch_size: Pictures per step, of all processes.
        n_processes: That share them.
        precision: Arithmetic of the network in training.
        device: What was measured on.
        step_seconds: Of a step; median of the measured ones.
        n_validations: Of the run.
        validation_seconds: Of each, from a part of the pictures.
        encoding_seconds: Of the pictures' latents before the first step, from a part of them, if none are kept; 0 for
            pixels.
        seconds: Of the whole run.
        peak_memory_bytes: Largest memory so far: of the device, or of this process where that is the CPU.
        state_bytes: Size of `training_state.pt`, about.
    """

    n_parameters: int
    n_epochs: int
    n_steps: int
    batch_size: int
    n_processes: int
    precision: str
    device: str
    step_seconds: float
    n_validations: int
    validation_seconds: float
    encoding_seconds: float
    seconds: float
    peak_memory_bytes: int | None
    state_bytes: int


def rehearse(
    experiment: ExperimentConfig,
    dataset: ImageDataset,
    *,
    device: str | torch.device | None = None,
    latent_cache: bool = True,
) -> Rehearsal:
    """Take a few steps of a training from its beginning, and validate a few pictures.

    Args:
        experiment: What would be trained and how; of an extended run the extensions alone.
        dataset: Pictures and labels.
        device: As for `train`.
        latent_cache: As for `train`; encoding is measured instead of done.

    Raises:
        ValueError: As `train`, but for the folder, which is not looked at.
        FileNotFoundError: The autoencoder, or the network to start from, is not to be had.
    """
    processes = Processes(accelerator_on(device))
    if experiment.train.extensions:  # the run before them is done
        settings = replace(experiment.train, epochs=sum(experiment.train.extensions), steps=None, extensions=())
        experiment = replace(experiment, train=settings)
    with torch.random.fork_rng(), TemporaryDirectory() as folder:
        run = TrainingRun(experiment, dataset, Path(folder), processes, resume=False)
        dataset = run.dataset  # without what is kept for calibration
        run.images = TrainingImages(dataset, run.flow.space, experiment.data, use_cache=False, device=run.device)
        settings, schedule = experiment.train, run.schedule
        step_seconds, batch_seconds = _measured_steps(run)
        encoding_seconds = 0.0
        if run.flow.space.is_latent and latent_cache:
            step_seconds -= batch_seconds
            n_pictures = len(dataset.train) * run.images.n_variants + len(dataset.val)
            encoding_seconds = n_pictures * batch_seconds / min(settings.batch_size, len(dataset.train))
        validation_seconds = _measured_validation(run)
    n_validations = sum(map(run.validation.is_due, range(schedule.n_epochs)))
    n_parameters = sum(parameter.numel() for parameter in run.flow.network.parameters())
    return Rehearsal(
        n_parameters=n_parameters,
        n_epochs=schedule.n_epochs,
        n_steps=schedule.n_steps,
        batch_size=settings.batch_size,
        n_processes=processes.n,
        precision=run.precision,
        device=str(run.device),
        step_seconds=step_seconds,
        n_validations=n_validations,
        validation_seconds=validation_seconds,
        encoding_seconds=encoding_seconds,
        seconds=encoding_seconds + schedule.n_steps * step_seconds + n_validations * validation_seconds,
        peak_memory_bytes=_peak_memory(run.device),
        state_bytes=_STATE_COPIES * 4 * n_parameters,
    )


def _measured_steps(run: TrainingRun) -> tuple[float, float]:
    """Return the median time of a step, and of making the image parts of its whole batch."""
    settings, n = run.settings, len(run.dataset.train)
    steps, batches = [], []
    run.network.train()
    for step in range(min(N_STEPS, run.n_steps)):
        run.position.step = step
        rows = next(epoch_batches(n, settings.batch_size, settings.seed, epoch=step))
        draws = run.images.draw(len(rows), torch.Generator().manual_seed(step))
        steps.append(_seconds(partial(run.step, rows), run.device))
        batches.append(_seconds(partial(run.images.batch, rows, draws), run.device))
    return median(steps[1:] or steps), median(batches[1:] or batches)


def _measured_validation(run: TrainingRun) -> float:
    """Return the time of a validation by all processes, from a part of the pictures."""
    val = run.dataset.val
    n = min(_N_VALIDATED, len(val))
    classify = partial(run.averaged_flow.classify, val.images[:n], run.validation.settings)
    classify()  # makes the inference form
    return _seconds(classify, run.device) * len(val) / n / run.processes.n


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
