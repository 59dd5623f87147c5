"""Reading and checking an .npz archive in MedMNIST layout."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from msf.files.damage import DAMAGE, first_line
from msf.files.npy import NpyHeader, read_npy_header
from msf.plain_values import MOST_ENTRIES, shown_names

SPLITS = ("train", "val", "test")
CLASS_NAMES = "class_names"
KEYS = tuple(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))
# Pictures shrink to a half or a tenth when they are compressed, zeros to a thousandth: arrays may need this many bytes,
# and this many for every byte of the file.
FREE_BYTES = 2**31
BYTES_PER_BYTE = 20
_READ = (*KEYS, CLASS_NAMES)
_N_LISTED = 12
_MOST_IN_MAPS = 255
_CHUNK_BYTES = 2**20
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Archive(NamedTuple):
    """What an archive holds.

    Args:
        tensors: `<split>_images` uint8 [N, H, W, C] and `<split>_labels` int64 [N], or uint8 [N, H, W] where pixels
            have classes, of all three splits; one that was not required may have N = 0.
        class_names: One per class; empty where the archive names none.
    """

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...]


def read_archive(path: Path, required: Sequence[str] = SPLITS) -> Archive:
    """Return the arrays of an archive.

    What the headers claim is compared with the file, the machine's memory and a budget (2 GiB, and twenty times the
    file's size) before anything is allocated.

    Args:
        path: An .npz with `train|val|test_images` (uint8 [N, H, W] or [N, H, W, 3]), `train|val|test_labels`
            (whole numbers, [N] or [N, 1]; or [N, H, W], a class per pixel, in [0, 255]) and, where the classes have
            names, `class_names` (text [n_classes]).
        required: Splits that must be there, with at least one picture.

    Raises:
        TypeError: Arrays of another type.
        ValueError: File missing or unreadable, keys missing, shapes that do not fit, an empty split, NaN; or arrays
            larger than the budget or the machine's memory; names that are not different texts.
    """
    arrays, where = _load(path), repr(str(path))
    found_splits = [split for split in SPLITS if f"{split}_images" in arrays or f"{split}_labels" in arrays]
    wanted = [key for key in KEYS if key.split("_")[0] in {*required, *found_splits}]
    missing = [key for key in wanted if key not in arrays]
    if missing or not wanted:
        raise ValueError(
            f"{where} lacks {', '.join(missing or KEYS)}: a data set must have the arrays {', '.join(wanted or KEYS)}; "
            f"found {shown_names(sorted(arrays), _N_LISTED) or 'none'}"
        )
    tensors = {}
    for split in found_splits:
        images = _images(arrays[f"{split}_images"], f"{split}_images of {where}")
        labels = _labels(arrays[f"{split}_labels"], f"{split}_labels of {where}")
        if len(images) == 0 and split in required:
            raise ValueError(f"{split}_images of {where} must hold at least one picture; it is empty")
        if len(images) != len(labels):
            raise ValueError(
                f"{split}_images and {split}_labels of {where} must be equally many; got {len(images)} and "
                f"{len(labels)}"
            )
        tensors[f"{split}_images"], tensors[f"{split}_labels"] = images, labels
    _check_maps(tensors, found_splits, where)
    shapes = {split: list(tensors[f"{split}_images"].shape[1:]) for split in found_splits}
    if len({tuple(shape) for shape in shapes.values()}) > 1:
        raise ValueError(f"the splits of {where} must have one picture shape [H, W, C]; got {shapes}")
    for split in SPLITS:
        tensors.setdefault(f"{split}_images", torch.empty(0, *shapes[found_splits[0]], dtype=torch.uint8))
        tensors.setdefault(f"{split}_labels", tensors[f"{found_splits[0]}_labels"][:0])
    return Archive(tensors, _class_names(arrays.get(CLASS_NAMES), f"{CLASS_NAMES} of {where}"))


class _Member(NamedTuple):
    """An array of an archive that has been looked at and not yet read."""

    info: zipfile.ZipInfo
    header: NpyHeader


def _load(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    where = repr(str(path))
    if not path.is_file():
        raise ValueError(f"the data set must be an existing .npz file; there is none at {where}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise ValueError("several arrays of one name")
            found = {name: _look_at(archive, info, name) for name, info in members.items() if name in _READ}
            _check_budget(sum(member.header.n_bytes for member in found.values()), path.stat().st_size)
            # Only what is wanted is read, but a message about missing keys names all that there is.
            return {name: _read(archive, found[name], name) if name in found else np.empty(0) for name in members}
    except DAMAGE as error:
        raise ValueError(f"{where} cannot be read as an .npz archive of plain arrays: {first_line(error)}") from error


def _look_at(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> _Member:
    if info.compress_type not in _COMPRESSIONS or info.flag_bits & 1:
        raise ValueError(f"{name} is encrypted, or compressed in another way than NumPy does")
    # Labels that are text are read too, so that the message can say what they are.
    kinds = [True] if name == CLASS_NAMES else [False, True] if name.endswith("_labels") else [False]
    wrong: ValueError | None = None
    for is_text in kinds:
        with archive.open(info) as file:
            try:
                return _Member(info, read_npy_header(cast(Any, file), info.file_size, is_text=is_text))
            except ValueError as error:
                wrong = wrong or error
    raise ValueError(f"{name}: {wrong}") from wrong


def _check_budget(n_bytes: int, file_bytes: int) -> None:
    budget = FREE_BYTES + BYTES_PER_BYTE * file_bytes
    if n_bytes > budget:
        raise ValueError(
            f"its arrays need {n_bytes} bytes, more than the {budget} that a file of this size may need (2 GiB, and "
            f"{BYTES_PER_BYTE} times its size); if they are right, save them uncompressed, with numpy.savez"
        )
    memory = _machine_memory()
    if memory is not None and n_bytes > memory:
        raise ValueError(f"its arrays need {n_bytes} bytes, more than this machine's memory of {memory}")


def _machine_memory() -> int | None:
    """Return the bytes of memory that this machine has; None where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _read(archive: zipfile.ZipFile, member: _Member, name: str) -> np.ndarray[Any, Any]:
    header = member.header
    values = np.empty(header.n_bytes, np.uint8)
    with archive.open(member.info) as opened:
        file = cast(Any, opened)
        file.read(header.offset)
        left = memoryview(values.data)
        while left and (n_read := file.readinto(left[:_CHUNK_BYTES])):
            left = left[n_read:]
        if left or file.read(1):  # the last read verifies the checksum
            raise ValueError(f"{name} is cut off")
    array = values.view(header.dtype)
    return array.reshape(header.shape, order="F" if header.is_fortran else "C")


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
    return torch.from_numpy(np.ascontiguousarray(array))


def _labels(array: np.ndarray[Any, Any], name: str) -> Tensor:
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be whole numbers; got {array.dtype}")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 3:
        if array.size and not 0 <= array.min() <= array.max() <= _MOST_IN_MAPS:
            raise ValueError(
                f"{name} must be in [0, {_MOST_IN_MAPS}] where pixels have classes; got values from {array.min()} to "
                f"{array.max()}"
            )
        return torch.from_numpy(array.astype(np.uint8))
    if array.ndim != 1:
        raise ValueError(
            f"{name} must be [N] or [N, 1], one class per picture, or [N, H, W], one per pixel; got {list(array.shape)}"
        )
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit 64 bits with a sign; got values up to {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def _check_maps(tensors: dict[str, Tensor], splits: Sequence[str], where: str) -> None:
    """Refuse label maps beside labels of whole pictures, and those of another size than their pictures."""
    kinds = {tensors[f"{split}_labels"].ndim for split in splits if len(tensors[f"{split}_labels"])}
    if len(kinds) > 1:
        raise ValueError(f"the splits of {where} must all have a class per picture, or all one per pixel")
    for split in splits:
        labels, images = tensors[f"{split}_labels"], tensors[f"{split}_images"]
        if labels.ndim == 3 and labels.shape[1:] != images.shape[1:3]:
            raise ValueError(
                f"{split}_labels of {where} must have a class for each of {list(images.shape[1:3])} pixels; got "
                f"{list(labels.shape[1:])}"
            )


def _class_names(array: np.ndarray[Any, Any] | None, name: str) -> tuple[str, ...]:
    if array is None:
        return ()
    if array.ndim != 1 or len(array) > MOST_ENTRIES:
        raise ValueError(f"{name} must be [n_classes], at most {MOST_ENTRIES}; got {list(array.shape)}")
    try:
        names = tuple(text.strip() for text in array.tolist())
        " ".join(names).encode()
    except (ValueError, UnicodeError):  # characters that Unicode does not have
        raise ValueError(f"{name} must be text") from None
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{name} must be different names; got {shown_names(names, _N_LISTED)}")
    return names
