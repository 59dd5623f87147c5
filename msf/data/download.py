"""Fetching a MedMNIST archive: address and checksum from the `medmnist` package, the check made here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

_TIMEOUT_SECONDS = 60
_CHUNK = 1 << 20


def download_medmnist(name: str, size: int, folder: Path) -> Path:
    """Download one archive, check its md5 and put it in place.

    The file appears under its name only when it is complete and its checksum right.

    Args:
        name: Name in the table of data sets, such as `bloodmnist`.
        size: 28, 64, 128 or 224.
        folder: Where to put it; made if absent.

    Returns:
        Path of the archive.

    Raises:
        ValueError: The package `medmnist` is not installed, the download fails, or the checksum is wrong. The text
            says what to do.
    """
    suffix = "" if size == 28 else f"_{size}"
    target = folder / f"{name}{suffix}.npz"
    by_hand = f"or put the file at {target}, or name its folder with data_root or MSF_DATA"
    try:
        from medmnist import INFO
    except ImportError as error:
        raise ValueError(
            f"data set {name + suffix!r} is not on this machine, and downloading it needs the package medmnist: "
            f"pip install 'medsymmflow[data]', {by_hand}"
        ) from error
    url, md5 = INFO[name][f"url{suffix}"], INFO[name][f"MD5{suffix}"]
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            received = _fetch(url, file.write)
        if received != md5:
            raise ValueError(f"the download of {url} must have md5 {md5}; got {received}: try again, {by_hand}")
        os.replace(partial, target)
    except OSError as error:
        raise ValueError(
            f"data set {name + suffix!r} could not be downloaded from {url} ({error}): {by_hand}"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
    return target


def _fetch(url: str, write: Callable[[bytes], object]) -> str:
    """Hand a resource on in chunks; return its md5."""
    digest = hashlib.md5(usedforsecurity=False)  # MedMNIST publishes md5; it guards against damage, not malice
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            write(chunk)
    return digest.hexdigest()
