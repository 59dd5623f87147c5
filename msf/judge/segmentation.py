"""Figures of label maps: overlap with the true maps, with intervals, and what uncertainty is worth pixel by pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msf.judge.metrics import prediction_metrics
from msf.judge.resampling import Array, Resamples, interval
from msf.judge.uncertainty import Prediction

MOST_JUDGED = 2**16
"""Pixels that calibration and selective prediction are measured on; of more, this many are chosen at random."""


def segmentation_metrics(
    prediction: Prediction, maps: Tensor, *, class_names: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Return the numbers that compare predicted label maps with the true ones.

    Args:
        prediction: Of the pixels of N pictures, with a `map_shape`.
        maps: True classes; int64 [N, H, W] of that shape.
        class_names: One per class, or empty.
        seed: Of the choice of pixels.

    Returns:
        What `prediction_metrics` returns for pixels, at most 65536 of them chosen at random, which all of its figures
        are about; `n_images`, `n_pixels` (of all pictures) and `n_pixels_judged` (chosen); and, over all pixels,
        `pixel_accuracy`, `iou` and `dice` (class to value, None for a class that is neither there nor predicted) with
        their means over the classes that are, `mean_iou` and `mean_dice`.

    Raises:
        TypeError: Maps that are not int64.
        ValueError: Maps of another shape than the predicted ones.
    """
    shape = (len(prediction) // max(1, _n_pixels(prediction)), *(prediction.map_shape or ()))
    if maps.dtype != torch.int64:
        raise TypeError(f"maps must be int64; got {maps.dtype}")
    if tuple(maps.shape) != shape:
        raise ValueError(f"maps must be {list(shape)}, as they were predicted; got {list(maps.shape)}")
    labels, n_classes = maps.flatten().cpu(), prediction.probability.shape[1]
    chosen = torch.arange(len(labels))
    if len(labels) > MOST_JUDGED:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(labels), generator=generator)[:MOST_JUDGED].sort().values
    of_pixels = prediction_metrics(rows_of(prediction, chosen), labels[chosen], class_names=class_names)
    names = tuple(class_names) or tuple(str(number) for number in range(n_classes))
    overlaps = _overlaps(_confusions(prediction, maps).sum(0, keepdims=True))
    plain = {name: [None if np.isnan(v) else float(v) for v in values[0]] for name, values in overlaps.items()}
    return {
        **of_pixels,
        "n_images": len(maps),
        "n_pixels": len(labels),
        "n_pixels_judged": len(chosen),
        "pixel_accuracy": float((prediction.label.cpu() == labels).double().mean()),
        "mean_iou": float(np.nanmean(overlaps["iou"][0])),
        "mean_dice": float(np.nanmean(overlaps["dice"][0])),
        **{name: dict(zip(names, values, strict=True)) for name, values in plain.items()},
    }


def segmentation_classes(
    prediction: Prediction, maps: Tensor, class_names: Sequence[str], resamples: Resamples
) -> dict[str, Any]:
    """Return the confusion matrix of pixels, and overlaps of every class with intervals from resampled pictures.

    Args:
        prediction: As for `segmentation_metrics`.
        maps: Likewise.
        class_names: One per class.
        resamples: Of the N pictures.

    Returns:
        JSON-ready. `confusion_matrix`: `classes`, and `counts` of pixels with a row per true and a column per predicted
        class. `per_class`: name, number of pixels `n`, and `iou`, `dice` and `recall`, each with `value`, `low` and
        `high`. `overall`: the same for `mean_iou`, `mean_dice` and `pixel_accuracy`.

    Numerics:
        A picture's pixels are drawn or left out together, since neighbours err together.
    """
    confusions = _confusions(prediction, maps)
    n, n_classes = confusions.shape[:2]
    flat = confusions.reshape(n, -1)
    drawn = np.concatenate([block @ flat for block in resamples.blocks()]).reshape(-1, n_classes, n_classes)
    overlaps = _overlaps(drawn)
    total = confusions.sum(0)
    with np.errstate(invalid="ignore"):
        accuracy = np.trace(drawn, axis1=1, axis2=2) / drawn.sum((1, 2))
    return {
        "confusion_matrix": {"classes": list(class_names), "counts": total.astype(int).tolist()},
        "per_class": [
            {
                "class": name,
                "n": int(total[number].sum()),
                **{figure: interval(values[:, number]) for figure, values in overlaps.items()},
            }
            for number, name in enumerate(class_names)
        ],
        "overall": {
            "pixel_accuracy": interval(accuracy),
            **{f"mean_{figure}": interval(np.nanmean(overlaps[figure], 1)) for figure in ("iou", "dice")},
        },
    }


def rows_of(prediction: Prediction, rows: Tensor) -> Prediction:
    """Return a prediction of some of the rows of another; they are no maps any more."""
    n = len(prediction)
    parts: dict[str, Any] = {
        entry.name: value[rows.to(value.device)]
        for entry in dataclasses.fields(prediction)
        if isinstance(value := getattr(prediction, entry.name), Tensor) and value.shape[:1] == (n,)
    }
    return dataclasses.replace(prediction, **parts, map_shape=None)


def _n_pixels(prediction: Prediction) -> int:
    height, width = prediction.map_shape or (0, 0)
    return height * width


def _confusions(prediction: Prediction, maps: Tensor) -> Array:
    """Return pixels by true and predicted class: float64 [N, n_classes, n_classes]."""
    n, n_classes = len(maps), prediction.probability.shape[1]
    pairs = maps.flatten(1).cpu() * n_classes + prediction.label.cpu().reshape(n, -1)  # [N, P]
    pairs = pairs + torch.arange(n)[:, None] * n_classes**2
    counts = pairs.flatten().bincount(minlength=n * n_classes**2)
    confusions: Array = counts.reshape(n, n_classes, n_classes).double().numpy()
    return confusions


def _overlaps(confusions: Array) -> dict[str, Array]:
    """Return intersection over union, Dice coefficient and recall of each class: [R, n_classes] from [R, n, n]."""
    both = np.diagonal(confusions, axis1=1, axis2=2)
    true, predicted = confusions.sum(2), confusions.sum(1)
    with np.errstate(invalid="ignore"):
        return {
            "iou": both / (true + predicted - both),
            "dice": 2 * both / (true + predicted),
            "recall": both / true,
        }
