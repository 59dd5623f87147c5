"""Grids of pictures: classes side by side, generated against real, surest against least sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from msf.judge.uncertainty import Prediction
from msf.report.figures import DPI, as_pixels

CELL_INCHES = 0.85
WRAPPED_NAME = 14


def class_grid(rows: Mapping[str, Tensor]) -> Figure:
    """Draw one row of pictures per class.

    Args:
        rows: Class name to float [n, C, H, W] in [0, 1].
    """
    return _rows_of_pictures([(name, pictures) for name, pictures in rows.items()])


def real_and_generated_grid(real: Mapping[str, Tensor], generated: Mapping[str, Tensor]) -> Figure:
    """Draw, per class, a row of real pictures above a row of generated ones.

    Args:
        real: Class name to float [n, C, H, W] in [0, 1]; fewer than n where the data hold fewer.
        generated: The same classes.
    """
    rows = []
    for name in real:
        rows += [(f"{name}\nreal", real[name]), ("generated", generated[name])]
    return _rows_of_pictures(rows)


def reconstruction_grid(pictures: Tensor, decoded: Tensor, n_columns: int = 8) -> Figure:
    """Draw pictures above what an autoencoder makes of them, pixel for pixel.

    Args:
        pictures: float [N, C, H, W] in [0, 1].
        decoded: Like `pictures`.
        n_columns: Pictures per row.
    """
    rows = []
    for start in range(0, len(pictures), n_columns):
        part = slice(start, start + n_columns)
        rows += [("original", pictures[part]), ("decoded", decoded[part])]
    return _rows_of_pictures(rows, cell_inches=max(CELL_INCHES, pictures.shape[-1] / DPI))


def certainty_grid(
    pictures: Tensor,
    prediction: Prediction,
    labels: Tensor,
    class_names: Sequence[str],
    score: str,
    n: int = 8,
) -> Figure:
    """Draw the n surest and the n least sure pictures with their class probabilities.

    A wrong prediction has a red title.

    Args:
        pictures: float [N, C, H, W] in [0, 1].
        prediction: Of these pictures.
        labels: True classes, int64 [N].
        class_names: One per class.
        score: Name of the uncertainty score that ranks them.
        n: Pictures per row.
    """
    order = prediction.scores()[score].cpu().sort(stable=True).indices.tolist()
    n = min(n, len(order) // 2)
    blocks = [("most certain", order[:n]), ("least certain", order[len(order) - n :])]
    figure = Figure(figsize=(1.75 * n + 0.6, 6.2), layout="constrained")
    figure.suptitle(f"ranked by {score}", fontsize=9)
    axes = figure.subplots(4, n, squeeze=False, height_ratios=[2, 1, 2, 1])
    pixels = as_pixels(pictures)
    for block, (title, chosen) in enumerate(blocks):
        for column, index in enumerate(chosen):
            predicted, true = int(prediction.label[index]), int(labels[index])
            picture, bars = axes[2 * block][column], axes[2 * block + 1][column]
            _show(picture, pixels[index])
            picture.set_title(
                f"{_wrapped(class_names[predicted])}\n(true: {_wrapped(class_names[true])})",
                fontsize=7,
                color="black" if predicted == true else "crimson",
            )
            _probability_bars(bars, prediction.probability[index], with_names=column == 0, class_names=class_names)
        axes[2 * block][0].set_ylabel(title, fontsize=9)
    return figure


def _probability_bars(axes: Axes, probability: Tensor, *, with_names: bool, class_names: Sequence[str]) -> None:
    positions = np.arange(len(probability))
    axes.barh(positions, probability.double().cpu().numpy(), color="steelblue")
    axes.set_xlim(0, 1)
    axes.invert_yaxis()
    axes.set_yticks(positions, class_names if with_names else [""] * len(positions), fontsize=6)
    axes.set_xticks([0, 1], ["0", "1"], fontsize=6)
    axes.set_xlabel("probability", fontsize=6)


def _rows_of_pictures(rows: Sequence[tuple[str, Tensor]], cell_inches: float = CELL_INCHES) -> Figure:
    n_columns = max(len(pictures) for _, pictures in rows)
    figure = Figure(figsize=(cell_inches * n_columns + 1.2, cell_inches * len(rows)))
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    for line, (name, pictures) in zip(axes, rows, strict=True):
        for cell in line:
            cell.set_axis_off()
        for cell, picture in zip(line, as_pixels(pictures), strict=False):
            cell.set_axis_on()
            _show(cell, picture)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.subplots_adjust(wspace=0.05, hspace=0.08)
    return figure


def _show(axes: Axes, picture: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]) -> None:
    is_grey = picture.shape[-1] == 1
    axes.imshow(picture[..., 0] if is_grey else picture, cmap="gray" if is_grey else None, vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])


def _wrapped(name: str) -> str:
    return name if len(name) <= WRAPPED_NAME else name[: WRAPPED_NAME - 1] + "…"
