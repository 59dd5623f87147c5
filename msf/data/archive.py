"""Reading and checking an .npz archive in MedMNIST layout."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "val", "test")
KEYS = tuple(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))


def read_archive(path: Path) -> dict[str, Tensor]:
    """Return the six arrays of an archive.

    Args:
        path: An .npz with `train|val|test_images` (uint8 [N, H, W] or [N, H, W, 3]) and `train|val|test_labels`
            (whole numbers, [N] or [N, 1]).

    Returns:
        `<split>_images` uint8 [N, H, W, C] and `<split>_labels` int64 [N].

    Raises:
        TypeError: Arrays of another type.
        ValueError: File missing or unreadable, keys missing, shapes that do not fit, an empty split, NaN.
    """
    arrays = _load(path)
    missing = [key for key in KEYS if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: a data set must have the arrays {', '.join(KEYS)}; "
            f"found {', '.join(sorted(arrays)) or 'none'}"
        )
    tensors = {}
    for split in SPLITS:
        images = _images(arrays[f"{split}_images"], f"{split}_images of {path}")
        labels = _labels(arrays[f"{split}_labels"], f"{split}_labels of {path}")
        if len(images) == 0:
            raise ValueError(f"{split}_images of {path} must hold at least one picture; it is empty")
        if len(images) != len(labels):
            raise ValueError(
                f"{split}_images and {split}_labels of {path} must be equally many; got {len(images)} and {len(labels)}"
            )
        tensors[f"{split}_images"], tensors[f"{split}_labels"] = images, labels
    shapes = {split: list(tensors[f"{split}_images"].shape[1:]) for split in SPLITS}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise ValueError(f"the splits of {path} must have one picture shape [H, W, C]; got {shapes}")
    return tensors


def _load(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not path.is_file():
        raise ValueError(f"the data set must be an existing .npz file; there is none at {path}")
    arrays = {}
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            for key in archive.files:
                # Only what is wanted is read, but a message about missing keys names all that there is.
                arrays[key] = archive[key] if key in KEYS else np.empty(0)
                if not isinstance(arrays[key], np.ndarray):
                    raise ValueError(f"{key} is no array")
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an .npz archive of plain arrays: {error}") from error
    return arrays


def _images(array: np.ndarray[Any, Any], name: str) -> Tensor:
    if array.dtype != np.uint8:
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite; got NaN or infinite values")
        levels = f" with values from {array.min()} to {array.max()}" if array.size else ""
        raise TypeError(f"{name} must be uint8 grey or colour levels, 0 to 255; got {array.dtype}{levels}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in (1, 3) or array.shape[1] != array.shape[2]:
        raise ValueError(f"{name} must be [N, H, W] or [N, H, W, 3] with H = W; got {list(array.shape)}")
    return torch.from_numpy(array)


def _labels(array: np.ndarray[Any, Any], name: str) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be whole numbers; got {array.dtype}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"{name} must be [N] or [N, 1], one class per picture; got {list(array.shape)}")
    return torch.from_numpy(array.astype(np.int64))
