"""Picture files of any size and mode, as a person has them, on their way to the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from msf.config import FitName
from msf.data.images import prepare_images
from msf_kernels.shapes import ImageBatch

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_GREY_MODES = ("1", "L")


class LoadedPictures(NamedTuple):
    """What came of some files.

    Args:
        images: float32 [n, channels, size, size] in [-1, 1]: the pictures that could be read, in their order.
        rows: For each of them, the number of its file.
        failures: For each other file, its number and what is wrong with it.
    """

    images: ImageBatch
    rows: list[int]
    failures: dict[int, str]


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


def read_image(path: Path) -> Tensor:
    """Read one picture, upright, at its own size and depth.

    Grey (1, 8 or 16 bit) stays grey; palettes and other colour spaces become RGB; transparent parts become black; the
    orientation that a camera noted is applied. Sixteen bits of a grey picture are all kept, and 65535 is white.

    Args:
        path: A file in any format that Pillow reads.

    Returns:
        uint8, or uint16 for deep grey pictures; [H, W, 1] or [H, W, 3].

    Raises:
        ValueError: Not a picture, damaged, several pictures in one, or floating-point values, whose range is unknown.
            The text names the file.
    """
    try:
        with Image.open(path) as opened:
            n_pictures = getattr(opened, "n_frames", 1)
            if n_pictures > 1 and opened.format != "MPO":  # a camera's second picture is a preview
                raise ValueError(f"{n_pictures} pictures in one file")
            pixels = _pixels(ImageOps.exif_transpose(opened))
    except Exception as error:  # every format's decoder raises what it likes
        raise ValueError(f"{str(path)!r} must be an intact picture; got: {error}") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1))


def load_pictures(paths: Sequence[Path], size: int, channels: int, *, fit: FitName = "stretch") -> LoadedPictures:
    """Read files and prepare what could be read; a broken file does not cost the others.

    Args:
        paths: Files.
        size: Height and width of the result.
        channels: Channels of the result, 1 or 3; colour becomes luminance where 1 are wanted.
        fit: What becomes of a picture that is not square. `stretch`: it is resized to a square, its sides each by its
            own factor. `crop`: its largest central square is kept, as MedMNIST did with its wide pictures.

    Raises:
        ValueError: An unknown `fit`, or a size or number of channels out of range.
    """
    if fit not in get_args(FitName):
        raise ValueError(f"fit must be one of {', '.join(get_args(FitName))}; got {fit!r}")
    if size < 1 or channels not in (1, 3):
        raise ValueError(f"size must be >= 1 and channels 1 or 3; got {size} and {channels}")
    prepared, rows, failures = [torch.empty(0, channels, size, size)], [], {}
    for row, path in enumerate(paths):
        try:
            image = read_image(path)
        except ValueError as error:
            failures[row] = str(error)
            continue
        if fit == "crop":
            image = _central_square(image)
        prepared.append(prepare_images(image[None], size, channels, allow_grey=True))
        rows.append(row)
    return LoadedPictures(torch.cat(prepared), rows, failures)


def _pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"whole numbers from {values.min()} to {values.max()} where 16 bits hold 0 to 65535")
        return values.astype(np.uint16)
    if image.mode == "F":
        raise ValueError("floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if image.has_transparency_data:
        is_grey = image.mode in (*_GREY_MODES, "LA", "La")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        image = image.convert("RGB").getchannel(0) if is_grey else image
    return np.array(image.convert("L" if image.mode in _GREY_MODES else "RGB"))


def _central_square(image: Tensor) -> Tensor:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
