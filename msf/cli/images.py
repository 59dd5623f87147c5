"""Reading the pictures that a person names on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the picture files among files and folders, folders searched one level deep, in the order of their names.

    Raises:
        FileNotFoundError: A path that does not exist, or a folder without pictures.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"folder {str(path)!r} holds no pictures ({', '.join(SUFFIXES)})")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"picture {str(path)!r} does not exist")
    return files


def read_image(path: Path, channels: int) -> Tensor:
    """Read one picture as uint8 [H, W, channels].

    Palettes, alpha and grey become the wanted mode; 16-bit grey keeps its upper eight bits.

    Raises:
        ValueError: Not a picture.
    """
    try:
        with Image.open(path) as opened:
            image: Image.Image = opened
            if opened.mode.startswith("I"):
                values = np.asarray(opened, dtype=np.int64)
                image = Image.fromarray(np.clip(values >> 8, 0, 255).astype(np.uint8))
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{str(path)!r} must be a picture ({', '.join(SUFFIXES)}); got: {error}") from error
    return torch.from_numpy(pixels).reshape(pixels.shape[0], pixels.shape[1], channels)
