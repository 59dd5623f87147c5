"""Fetching a MedMNIST archive: address and checksum from the `medmnist` package, the check made here."""

from __future__ import annotations

import hashlib
import http.client
import urllib.request
from pathlib import Path

from msf.files.atomic import write_atomically

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
        ValueError: The package `medmnist` is not installed or does not know the archive, the download fails, or the
            checksum is wrong. The text says what to do.
    """
    suffix = "" if size == 28 else f"_{size}"
    target = folder / f"{name}{suffix}.npz"
    by_hand = f"or put the file at {target}, or name its folder with data_root or MSF_DATA"
    try:
        from medmnist import INFO
    except ImportError as error:
        raise ValueError(
            f"data set {target.stem!r} is not on this machine, and downloading it needs the package medmnist: "
            f"pip install 'medsymmflow[data]', {by_hand}"
        ) from error
    try:
        url, md5 = INFO[name][f"url{suffix}"], INFO[name][f"MD5{suffix}"]
    except KeyError as error:
        raise ValueError(
            f"the installed medmnist knows no address of {target.stem!r}: pip install --upgrade medmnist, {by_hand}"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(target, lambda partial: _fetch(url, md5, partial))
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(f"data set {target.stem!r} could not be downloaded from {url} ({error}): {by_hand}") from error
    return target


def _fetch(url: str, md5: str, path: Path) -> None:
    """Write a resource to a file, in chunks; raise if its md5 is another one."""
    digest = hashlib.md5(usedforsecurity=False)  # what MedMNIST publishes; guards against damage, not malice
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response, path.open("wb") as file:
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != md5:
        raise ValueError(f"the download of {url} must have md5 {md5}; got {digest.hexdigest()}: nothing was kept")
