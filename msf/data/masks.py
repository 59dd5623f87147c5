"""Masks of pictures on their way into a data set: read, fitted like their pictures, their values made classes."""

from __future__ import annotations

import hashlib
import os
from array import array
from pathlib import Path

import numpy as np
from torch import Tensor

from msf.data.label_maps import resize_label_maps
from msf.data.picture_files import ImageSearch
from msf.data.pictures import Reading, made_square, read_label_map
from msf.data.splits import IntArray

N_VALUES = 256
_WHITE = 255  # what binary masks have instead of 1
_N_LISTED = 8


class MaskFolder:
    """The masks of a folder by the path of their pictures: the same from its folder on, whatever the suffix.

    Args:
        folder: Searched at every depth.

    Raises:
        FileNotFoundError: There is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        """Look for masks."""
        if not folder.is_dir():
            raise FileNotFoundError(f"masks must be a folder; there is none at {str(folder)!r}")
        self._folder = folder
        self._found: dict[str, list[str]] = {}
        for file, failure in ImageSearch().found([folder]):
            if failure is not None:
                continue
            self._found.setdefault(_stem(file, folder), []).append(file)

    def of(self, file: str, root: Path) -> tuple[str | None, str | None]:
        """Return the mask of a picture that lies under `root`, or None and what is wrong."""
        masks = self._found.get(_stem(file, root), [])
        if len(masks) == 1:
            return masks[0], None
        if not masks:
            return None, f"{file!r} has no mask in {str(self._folder)!r}"
        return None, f"{file!r} has several masks: {', '.join(map(repr, masks[:_N_LISTED]))}"


def _stem(file: str, root: Path) -> str:
    return os.path.splitext(os.path.relpath(file, root))[0]


class MaskReader:
    """Reads masks one by one, and keeps what is known of them.

    Args:
        names: Of the classes; empty: the values of the masks are all that is known.
        reading: How their pictures are read and made square.
    """

    def __init__(self, names: tuple[str, ...], reading: Reading) -> None:
        """Start with no mask."""
        self._names = names
        self._reading = reading
        self._first: dict[int, str] = {}
        self._present = bytearray()
        self._digests = array("Q")

    def read(self, path: str, height: int, width: int) -> Tensor:
        """Return the mask of a picture of this size, made square like it; uint8 [H, W].

        Raises:
            ValueError: It cannot be read, has another size than its picture, or values that are no classes.
        """
        mask = read_label_map(Path(path), max_pixels=self._reading.max_pixels)
        if tuple(mask.shape) != (height, width):
            raise ValueError(
                f"{path!r} must have the size of its picture, {width} x {height} pixels; got {mask.shape[1]} x "
                f"{mask.shape[0]}"
            )
        values = np.unique(mask.numpy()).tolist()
        unknown = [value for value in values if value >= len(self._names)] if self._names else []
        if unknown and not (len(self._names) == 2 and values in ([0, _WHITE], [_WHITE])):
            raise ValueError(
                f"{path!r} must have values in [0, {len(self._names)}), the numbers of the classes; got {unknown[0]}"
            )
        return made_square(mask[..., None], self._reading.fit)[..., 0]

    def keep(self, path: str, mask: Tensor, size: int) -> bytes:
        """Take a mask that `read` returned, and return it at the size of the data set."""
        for value in np.unique(mask.numpy()).tolist():
            self._first.setdefault(value, path)
        packed = resize_label_maps(mask[None], size, size)[0].contiguous().numpy()
        present = np.zeros(N_VALUES, bool)
        present[np.unique(packed)] = True
        self._present += present.tobytes()
        self._digests.append(int.from_bytes(hashlib.blake2b(packed.tobytes(), digest_size=8).digest(), "little"))
        return packed.tobytes()

    def classes(self) -> tuple[tuple[str, ...], np.ndarray[tuple[int], np.dtype[np.uint8]]]:
        """Return the names of the classes, and for each value of the masks the number of its class.

        Raises:
            ValueError: Values without names that are neither 0, 1, 2 ... nor 0 and 255.
        """
        values, table = sorted(self._first), np.arange(N_VALUES, dtype=np.uint8)
        n_names = len(self._names)
        if _WHITE in values and set(values) <= {0, _WHITE} and n_names in (0, 2):
            table[_WHITE] = 1
            values = [0, 1]
        if not n_names and (values != list(range(len(values))) or len(values) < 2):
            listed = ", ".join(map(str, values[:_N_LISTED])) + (", ..." if len(values) > _N_LISTED else "")
            last = self._first[sorted(self._first)[-1]]
            raise ValueError(
                "values of masks must be 0, 1, 2 and so on, two or more, or 0 and 255, or classes must have names "
                f"(--class-names); got {listed}, the largest first in {last!r}"
            )
        return self._names or tuple(map(str, values)), table

    def presence(self, table: np.ndarray[tuple[int], np.dtype[np.uint8]], n_classes: int) -> IntArray:
        """Return how often (0 or 1) each class occurs in each mask; int64 [n, n_classes]."""
        by_value = np.frombuffer(bytes(self._present), bool).reshape(-1, N_VALUES)
        present = np.zeros((len(by_value), n_classes), np.int64)
        for value in sorted(self._first):
            present[:, table[value]] |= by_value[:, value]
        return present

    @property
    def digests(self) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """A number per mask that equal masks share; uint64 [n]."""
        return np.array(self._digests, np.uint64)
