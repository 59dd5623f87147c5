"""Writing figures and pictures to files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from msf.data.picture_files import FIGURE_MARK
from msf.files.atomic import write_atomically

DPI = 110


def write_figure(path: str | os.PathLike[str], figure: Figure) -> None:
    """Write a figure as PNG, as a whole or not at all, marked as one so that nobody takes it for a picture."""
    look: dict[str, Any] = {"dpi": DPI, "bbox_inches": "tight", "facecolor": "white"}
    mark = {"Software": FIGURE_MARK}
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", metadata=mark, **look))


def write_pictures(pictures: Tensor, paths: Sequence[Path]) -> list[Path]:
    """Write pictures as 8-bit PNG files.

    Args:
        pictures: float [N, C, H, W] in [0, 1], C is 1 or 3.
        paths: One file per picture.

    Returns:
        The paths.

    Raises:
        ValueError: Not one path per picture.
    """
    for picture, path in zip(as_pixels(pictures), paths, strict=True):
        write_atomically(path, Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save)
    return list(paths)


def as_pixels(pictures: Tensor) -> np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]:
    """Return float [N, C, H, W] in [0, 1] as uint8 [N, H, W, C]."""
    values = (pictures.detach().float().clamp(0, 1) * 255).round().byte()
    return values.permute(0, 2, 3, 1).cpu().numpy()
