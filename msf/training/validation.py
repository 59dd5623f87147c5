"""Validation of the averaged weights, shared by the processes of a run, and what can be drawn of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msf.data import ImageDataset
from msf.evaluate import working_labels
from msf.judge.metrics import prediction_metrics
from msf.judge.segmentation import segmentation_metrics
from msf.judge.uncertainty import Prediction
from msf.medsymmflow import MedSymmFlow
from msf.plain_values import told_apart
from msf.training.processes import Processes
from msf.training.schedule import Schedule, validation_interval

PREVIEWS_FOLDER = "previews"
_PREVIEWED = 4  # pictures per class


class Validation:
    """The figures of the validation split, the same in every process of a run.

    Each process classifies its share of the pictures. A prediction depends on its picture and the seed alone, so that
    the figures are those of a single process.

    Args:
        flow: With the averaged weights; its configuration says how pictures are classified.
        dataset: Its `val` is classified.
        processes: Who shares the work; all of them call this.
        schedule: Epochs at which a cycle ends are always validated.

    Attributes:
        settings: How pictures are classified.

    Raises:
        ValueError: Previews are wanted of a network that gives every pixel a class.
    """

    def __init__(self, flow: MedSymmFlow, dataset: ImageDataset, processes: Processes, schedule: Schedule) -> None:
        """Settle how pictures are classified, and how often."""
        self._flow = flow
        self._dataset = dataset
        self._processes = processes
        self._schedule = schedule
        train = flow.config.train
        if train.preview_every and flow.task.is_per_pixel:
            raise ValueError(f"preview_every must be 0 where every pixel has a class; got {train.preview_every}")
        self.settings = dataclasses.replace(flow.config.inference.classify, n_samples=train.validation_samples)
        self._interval = validation_interval(train, self.settings, len(dataset.train), len(dataset.val))

    def is_due(self, epoch: int) -> bool:
        """Return whether an epoch, from 0, is one to validate."""
        return (epoch + 1) % self._interval == 0 or epoch + 1 in self._schedule.cycle_ends

    def metrics(self, latents: Tensor | None, progress: Callable[[int, int], None] | None) -> dict[str, Any]:
        """Return what `msf.judge.metrics.prediction_metrics` returns, or `segmentation_metrics` for label maps.

        Args:
            latents: Of the split's pictures, encoded before.
            progress: Called as `progress(n_done, n_total)`, in this process's samples.

        Raises:
            InvalidPredictionError: The network gives NaN or infinite values.
        """
        val, mine = self._dataset.val, None
        rows = self._processes.rows(len(val))
        if len(rows):
            mine = self._flow.classify(
                val.images[rows],
                self.settings,
                seed=self._flow.config.train.seed,
                latents=None if latents is None else latents[rows],
                progress=progress,
            )
        prediction = joined([part for part in self._processes.gather(mine) if part is not None])
        judge = segmentation_metrics if self._dataset.is_per_pixel else prediction_metrics
        return judge(prediction, working_labels(self._flow, val), class_names=self._dataset.class_names)


def joined(parts: list[Prediction]) -> Prediction:
    """Return the prediction of all pictures from those of every n-th picture, label maps included.

    Args:
        parts: Part k of n is of the pictures k, k + n, k + 2n and so on; at least one.
    """
    if len(parts) == 1:
        return parts[0]
    n, n_pixels = sum(map(len, parts)), prod(parts[0].map_shape or ())
    whole: dict[str, Any] = {}
    for entry in dataclasses.fields(Prediction):
        values = [getattr(part, entry.name) for part in parts]
        if isinstance(values[0], Tensor):
            shape = values[0].shape[1:]
            value = values[0].new_empty(n // n_pixels, n_pixels, *shape)
            for number, part in enumerate(values):
                value[number :: len(parts)] = part.reshape(-1, n_pixels, *shape)
            whole[entry.name] = value.flatten(0, 1)
        else:
            whole[entry.name] = values[0]
    return dataclasses.replace(parts[0], **whole)


def write_preview(flow: MedSymmFlow, metrics: dict[str, Any], folder: Path, name: str, seed: int) -> None:
    """Draw generated pictures of every class, and error rates against coverage on the validation split.

    Args:
        flow: With the averaged weights.
        metrics: What `Validation.metrics` returned.
        folder: Of the run; `previews` inside is made.
        name: Of the epoch, with which the files begin.
        seed: Seed of the noise; the same in every epoch, so that pictures can be compared.
    """
    from msf import report

    titles = told_apart(flow.task.class_names or tuple(map(str, range(flow.task.n_classes))))
    labels = torch.arange(flow.task.n_classes).repeat_interleave(_PREVIEWED)
    pictures = flow.generate(labels, seed=seed).cpu()
    rows = {title: pictures[labels == label] for label, title in enumerate(titles)}
    folder = folder / PREVIEWS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    report.write_figure(folder / f"{name}-samples.png", report.class_grid(rows))
    curve = report.risk_coverage_figure(metrics["scores"], metrics["accuracy"])
    report.write_figure(folder / f"{name}-curve.png", curve)
