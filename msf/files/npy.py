"""Headers of NumPy's array format, checked before anything is allocated; no code and no Python literal is evaluated.

Archives of such arrays are written here too, a part at a time.

Source:
    numpy.lib.format, versions 1.0 to 3.0 of the format.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

_MAGIC = b"\x93NUMPY"
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}  # of the header's own length, by major version
_MAX_HEADER = 10_000
_MAX_AXES = 32
_MAX_DIGITS = 19
_ENTRY = re.compile(r"""\s*(['"])(\w+)\1\s*:\s*('[^']*'|"[^"]*"|True|False|\([\d\sL,]*\))\s*(?:,|$)""")
_PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|\?)")


class NpyHeader(NamedTuple):
    """What stands before the values of an array.

    Args:
        shape: Of the array.
        dtype: Of its values: bool, whole or floating-point numbers, in any byte order.
        is_fortran: Whether the first axis varies fastest.
        offset: Bytes before the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    offset: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(file: BinaryIO, n_bytes: int) -> NpyHeader:
    """Return the header of an array, and leave the file at its first value.

    Args:
        file: At the array's first byte.
        n_bytes: Bytes that the file has from there.

    Raises:
        ValueError: No array, a header that is malformed or describes something else than plain numbers, or values
            that need more or fewer bytes than there are.
    """
    start = file.read(8)
    major = start[6] if len(start) == 8 and start.startswith(_MAGIC) else 0
    if major not in _LENGTH_BYTES:
        raise ValueError("it is no array in NumPy's format")
    length = int.from_bytes(file.read(_LENGTH_BYTES[major]), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"the header of its array claims {length} bytes")
    text = file.read(length).decode("utf-8" if major == 3 else "latin-1")
    shape, dtype, is_fortran = _parse(text)
    header = NpyHeader(shape, dtype, is_fortran, 8 + _LENGTH_BYTES[major] + length)
    if header.offset + header.n_bytes != n_bytes:
        raise ValueError(
            f"its array of {dtype} {list(shape)} needs {header.n_bytes} bytes; the file has {n_bytes - header.offset}"
        )
    return header


def map_npy(path: Path) -> np.memmap[Any, Any]:
    """Return the array of an .npy file, mapped for reading.

    Raises:
        FileNotFoundError: No such file.
        ValueError: See `read_npy_header`; or the array is not C-contiguous, or empty.
    """
    with path.open("rb") as file:
        header = read_npy_header(file, path.stat().st_size)
    if header.is_fortran or not header.n_bytes:
        raise ValueError("its array is empty or in Fortran's order")
    return np.memmap(path, mode="r", dtype=header.dtype, shape=header.shape, offset=header.offset)


class NewArray(NamedTuple):
    """An array to write.

    Args:
        shape: Of the whole.
        dtype: Of its values.
        parts: Arrays that make it up along the first axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: Iterable[np.ndarray[Any, Any]]


def write_npz(path: Path, arrays: Mapping[str, NewArray]) -> None:
    """Write an archive as `numpy.savez` does, uncompressed; the same arrays give the same bytes.

    Args:
        path: File to create.
        arrays: By name. Parts are asked for one after another, so that an array need not fit the memory.

    Raises:
        ValueError: Parts that are not the array that was announced.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(info, "w", force_zip64=True) as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape,
                }  # fmt: skip
                np.lib.format.write_array_header_1_0(cast(Any, file), header)
                n_rows = 0
                for part in array.parts:
                    if part.shape[1:] != array.shape[1:] or part.dtype != array.dtype:
                        raise ValueError(
                            f"{name} must be {array.dtype} {list(array.shape)}; got a part of another kind"
                        )
                    file.write(np.ascontiguousarray(part).tobytes())
                    n_rows += len(part)
                if n_rows != array.shape[0]:
                    raise ValueError(f"{name} must have {array.shape[0]} rows; its parts have {n_rows}")


def _parse(text: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    body = text.strip()
    refused = f"the header of its array describes no plain array of numbers: {body[:80]!r}"
    if not (body.startswith("{") and body.endswith("}")):
        raise ValueError(refused)
    body, position, entries = body[1:-1].rstrip(), 0, {}
    while position < len(body):
        match = _ENTRY.match(body, position)
        if match is None or match[2] in entries:
            raise ValueError(refused)
        entries[match[2]] = match[3]
        position = match.end()
    if entries.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(refused)
    descr, order, shape = entries["descr"][1:-1], entries["fortran_order"], entries["shape"]
    if not _PLAIN.fullmatch(descr) or order not in ("True", "False") or not shape.startswith("("):
        raise ValueError(refused)
    parts = [part.strip().removesuffix("L") for part in shape[1:-1].split(",")]
    sizes = parts[:-1] if parts[-1] == "" else parts
    if len(sizes) > _MAX_AXES or not all(re.fullmatch(rf"\d{{1,{_MAX_DIGITS}}}", size) for size in sizes):
        raise ValueError(refused)
    return tuple(map(int, sizes)), np.dtype(descr), order == "True"
