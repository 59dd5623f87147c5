"""The page of pictures of a pool's report: generated ones above the training pictures that are nearest to them."""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from msf.data import seeded_generator
from msf.pools.nearest import Nearest, mirrored
from msf.pools.pool import Pool
from msf.pools.quality import PoolReport

N_COLUMNS = 10
_CELL_INCHES = 1.05
_PAGE_STREAM = 4


def nearest_page(report: PoolReport, pool: Pool, *, seed: int = 0) -> Figure:
    """Draw the pictures that are nearest to a training picture, and some at random, with what they are nearest to.

    Three rows each: generated, nearest in features, nearest in pixels, with distance and p. The title of a picture that
    is called memorised is red.

    Args:
        report: On the pool.
        pool: The pool.
        seed: Of the random choice.
    """
    n = min(N_COLUMNS, len(pool))
    closeness = report.in_features.p + report.in_pixels.p
    nearest = sorted(range(len(pool)), key=lambda i: (float(closeness[i]), float(report.in_pixels.distance[i])))[:n]
    order = _random_order(len(pool), seed)[:n]
    figure = Figure(figsize=(_CELL_INCHES * n + 1.4, 6 * 1.25 * _CELL_INCHES), layout="constrained")
    axes = figure.subplots(6, n, squeeze=False)
    figure.suptitle(
        f"{report.figures['memorisation']['memorised']} of {len(pool)} called memorised at level "
        f"{report.figures['memorisation']['level']:g}; features: {report.figures['features']}",
        fontsize=8,
    )
    for block, (title, chosen) in enumerate((("nearest", nearest), ("random", order))):
        for column, number in enumerate(chosen):
            above, middle, below = (axes[3 * block + row][column] for row in range(3))
            row = report.rows[number]
            _show(above, pool.images[number], row["label_name"], "crimson" if row["is_memorised"] else "black")
            _show_nearest(middle, report.in_features, number, report)
            _show_nearest(below, report.in_pixels, number, report)
        for row_of_block, name in enumerate((f"{title}:\ngenerated", "nearest\nin features", "nearest\nin pixels")):
            axes[3 * block + row_of_block][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure


def _random_order(n: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(n, generator=seeded_generator(seed, _PAGE_STREAM)).tolist()
    return order


def _show_nearest(axes: Axes, near: Nearest, number: int, report: PoolReport) -> None:
    index, mirror = int(near.index[number]), int(near.mirror[number])
    orientations = mirrored(report.training[index : index + 1], report.figures["memorisation"]["mirrored"])
    caption = f"{float(near.distance[number]):.3f}, p {float(near.p[number]):.2g}"
    _show(axes, orientations[mirror][0], caption, "black")


def _show(axes: Axes, picture: Tensor, title: str, colour: str) -> None:
    is_grey = picture.shape[-1] == 1
    values = picture[..., 0] if is_grey else picture
    axes.imshow(values.numpy(), cmap="gray" if is_grey else None, vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title if len(title) <= 18 else f"{title[:17]}…", fontsize=6, color=colour, parse_math=False)
