"""Judge a trained flow on one split of a data set: accuracy, calibration and selective prediction in one dictionary."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from msf.config import ClassifySettings, settings_for
from msf.data import ImageDataset, Split
from msf.data.label_maps import resize_label_maps
from msf.judge.metrics import prediction_metrics
from msf.judge.segmentation import segmentation_metrics
from msf.judge.uncertainty import Prediction
from msf.medsymmflow import MedSymmFlow

_N_LISTED = 4


class Evaluation(NamedTuple):
    """A split that was classified, with every figure about it.

    Args:
        metrics: What `evaluate` returns.
        prediction: Of its pictures.
    """

    metrics: dict[str, Any]
    prediction: Prediction


def evaluate(
    model: MedSymmFlow,
    dataset: ImageDataset,
    split: str = "test",
    settings: ClassifySettings | None = None,
    *,
    seed: int = 0,
    latents: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Classify one split and return every figure about it, ready for a JSON file.

    Args:
        model: The trained flow.
        dataset: Pictures with labels.
        split: `train`, `val` or `test`. Choose settings on `val`; report `test` once.
        settings: How the pictures are classified; None: as the checkpoint says.
        seed: Seed of the noise.
        latents: Of the split's pictures, encoded before; see `MedSymmFlow.classify`.
        progress: Called as `progress(n_done, n_total)`, in samples.
        **fields: Single fields of `msf.config.ClassifySettings` in place of those of `settings`.

    Returns:
        What `msf.judge.metrics.prediction_metrics` returns, or for classes of pixels, at the working size,
        `msf.judge.segmentation.segmentation_metrics` (with a warning where the data name their classes otherwise than
        the model), and `dataset`, `split`, the settings that a checkpoint stores (`n_samples`, `n_steps`, `method`,
        `grid`, `flow`, `decision`, `readout`, `antithetic`, and `precision` as `auto` chose it), `convolution`,
        `mean_n_samples` (less with `stop`), `nfe`, `seed`, `micro_batch`, `seconds` and `samples_per_second` of the
        classification.

    Raises:
        TypeError: A setting that does not exist.
        ValueError: The data have other classes than the model, or classes of pixels where the model has those of
            pictures, or the other way round; or an argument is out of range.
    """
    return evaluate_split(
        model, dataset, split, settings, seed=seed, latents=latents, progress=progress, **fields
    ).metrics


def evaluate_split(
    model: MedSymmFlow,
    dataset: ImageDataset,
    split: str = "test",
    settings: ClassifySettings | None = None,
    *,
    seed: int = 0,
    latents: Tensor | None = None,
    progress: Callable[[int, int], None] | None = None,
    **fields: Any,
) -> Evaluation:
    """Do what `evaluate` does, and return the prediction of every picture too; arguments and errors are the same."""
    if dataset.n_classes != model.task.n_classes:
        raise ValueError(
            f"dataset must have the model's {model.task.n_classes} classes; {dataset.name!r} has {dataset.n_classes}"
        )
    if dataset.is_per_pixel != model.task.is_per_pixel:
        kinds = {True: "a class per pixel", False: "a class per picture"}
        raise ValueError(
            f"dataset must have {kinds[model.task.is_per_pixel]}, as the model; {dataset.name!r} has "
            f"{kinds[dataset.is_per_pixel]}"
        )
    part = dataset.split(split)
    chosen = settings_for("evaluate", model.config.inference.classify, settings, fields)
    started = time.perf_counter()
    prediction = model.classify(part.images, chosen, seed=seed, latents=latents, progress=progress)
    seconds = time.perf_counter() - started
    n_drawn = float(torch.as_tensor(prediction.n_samples).double().mean())
    labels = working_labels(model, part)
    judge = segmentation_metrics if dataset.is_per_pixel else prediction_metrics
    metrics = judge(prediction, labels, class_names=dataset.class_names)
    figures = {
        "dataset": dataset.name,
        "split": split,
        **metrics,
        "warnings": _name_warnings(model.task.class_names, dataset) + metrics["warnings"],
        **chosen.to_dict(),
        "precision": prediction.precision,  # what `auto` came to
        "convolution": prediction.convolution,
        "seed": seed,
        "mean_n_samples": n_drawn,
        "nfe": prediction.nfe,
        "micro_batch": prediction.micro_batch,
        "seconds": seconds,
        "samples_per_second": n_drawn * len(part) / seconds,
    }
    return Evaluation(figures, prediction)


def working_labels(model: MedSymmFlow, split: Split) -> Tensor:
    """Return the true classes of a split as predictions of a model are compared with them.

    Returns:
        int64 [N], or label maps [N, H, W] at the working size.
    """
    labels = split.labels.long()
    return resize_label_maps(labels, *model.semantic_shape[1:]) if labels.ndim == 3 else labels


def _name_warnings(names: tuple[str, ...], dataset: ImageDataset) -> list[str]:
    """Say where numbers of classes may mean something else to the model than to the data."""
    mine, theirs = ([" ".join(name.split()).casefold() for name in given] for given in (names, dataset.class_names))
    if not names or mine == theirs:
        return []
    if sorted(mine) == sorted(theirs):
        what = "the same names in another order, so that equal numbers mean different classes"
    elif theirs == [str(number) for number in range(len(theirs))]:
        what = "only numbers, which are taken for the model's"
    else:
        what = "other names; classes are compared by their numbers"
    pairs = [f"{number}: {a} / {b}" for number, (a, b) in enumerate(zip(names, dataset.class_names, strict=True))]
    different = [pair for pair, a, b in zip(pairs, mine, theirs, strict=True) if a != b]
    listed = "; ".join(different[:_N_LISTED]) + ("; ..." if len(different) > _N_LISTED else "")
    return [f"the classes of {dataset.name} have {what} (model / data: {listed})"]
