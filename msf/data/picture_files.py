"""Which files are pictures: those that are named, and those that lie in folders that are named."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

FIGURE_MARK = "MedSymmFlow figure"
"""What the PNG field `Software` of a drawn figure says, so that a figure is not taken for a picture."""

# Pillow knows them by name and does not decode them, or only with another program; or the reader refuses them.
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "ICNS", "ICO", "MPEG", "WMF")
_MEDICAL = (".dcm", ".dicom", ".ima", ".mha", ".mhd", ".nii", ".nii.gz", ".nrrd")
_HEAD_BYTES = 1024
_FIGURE = b"tEXtSoftware\0" + FIGURE_MARK.encode()
_UNMARKED_FIGURE = b"tEXtSoftware\0Matplotlib"
_GENERATED = re.compile(r"\d{2,}-\d{4,}\.png")
_TWICE = "named twice, or links to another picture"
_SHOWN_KINDS = 6
_KINDS = {stat.S_ISCHR: "a device", stat.S_ISBLK: "a device", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}


class FoundImages(NamedTuple):
    """What a search found.

    Args:
        files: Picture files, each once, in the order of the search; and paths that cannot be read, in their places.
        failures: For each path of `files` that cannot be read, its number and what is wrong with it.
        skipped: What lies in the folders and is no picture, and pictures named twice: kind and number.
    """

    files: list[Path]
    failures: dict[int, str]
    skipped: Mapping[str, int]


def search_images(paths: Sequence[Path]) -> FoundImages:
    """Return the picture files among files and folders.

    A file that is named is taken whatever its name. Folders are searched at every depth, in the order of names; a file
    is taken from them if its suffix is that of a format that Pillow decodes. Links to files are followed; links to
    folders are not, so that a search ends. Hidden files and folders, and figures that `msf` drew, are skipped. A
    picture that is reached in two ways is taken once.

    Args:
        paths: Files and folders. Those that do not exist, or cannot be read, are told in `failures`.
    """
    search = _Search()
    for path in paths:
        search.add_named(path)
    return FoundImages(search.files, search.failures, search.skipped)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the files of `search_images`, where all is well.

    Raises:
        FileNotFoundError: A path that does not exist or cannot be read, or a folder without pictures.
    """
    found = search_images(paths)
    for reason in found.failures.values():
        raise FileNotFoundError(reason)
    return found.files


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow decodes here, in lower case, with their dots."""
    Image.init()
    formats = Image.OPEN.keys() - set(_NOT_DECODED)
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


class _Search:
    def __init__(self) -> None:
        self.files: list[Path] = []
        self.failures: dict[int, str] = {}
        self.skipped: Counter[str] = Counter()
        self._seen: set[str] = set()

    def add_named(self, path: Path) -> None:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            self._fail(path, f"picture {str(path)!r} does not exist")
        except OSError as error:
            self._fail(path, f"picture {str(path)!r} cannot be read: {error.strerror or error}")
        else:
            if stat.S_ISDIR(mode):
                self._add_folder(path)
            else:
                self._add_file(path, mode)

    def _add_folder(self, root: Path) -> None:
        n_before, skipped_before = len(self.files), self.skipped.copy()
        n_twice = self.skipped[_TWICE]
        for path in self._below(root):
            self._add_found(path)
        if len(self.files) == n_before and self.skipped[_TWICE] == n_twice:
            inside = described(self.skipped - skipped_before)
            self._fail(root, f"folder {str(root)!r} holds no pictures{f', but {inside}' if inside else ''}")

    def _below(self, root: Path) -> Iterator[Path]:
        """Yield what is no folder, at every depth, in the order of names."""
        waiting = [root]
        while waiting:
            path = waiting.pop()
            if path is not root and not _is_own_folder(path):
                yield path
                continue
            try:
                names = sorted(os.listdir(path), reverse=True)
            except OSError as error:
                self._fail(path, f"folder {str(path)!r} cannot be searched: {error.strerror or error}")
                continue
            shown = [name for name in names if not name.startswith(".")]
            self._skip("hidden", len(names) - len(shown))
            waiting += [path / name for name in shown]

    def _add_found(self, path: Path) -> None:
        suffix = _suffix(path)
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if suffix in readable_suffixes():
                what = "is a link to nothing" if path.is_symlink() else f"cannot be read: {error.strerror or error}"
                self._fail(path, f"picture {str(path)!r} {what}")
            else:
                self._skip(suffix or "without suffix")
            return
        if stat.S_ISDIR(mode):
            self._skip("links to folders (name them to have them searched)")
        elif suffix in _MEDICAL or (not suffix and stat.S_ISREG(mode) and _head(path)[128:132] == b"DICM"):
            self._skip("DICOM, NIfTI and the like (convert them to PNG with the window that the reader needs)")
        elif suffix not in readable_suffixes():
            self._skip(suffix or "without suffix")
        elif suffix == ".png" and stat.S_ISREG(mode) and _is_figure(path):
            self._skip("figures drawn by msf")
        else:
            self._add_file(path, mode)

    def _add_file(self, path: Path, mode: int) -> None:
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "no file")
            self._fail(path, f"picture {str(path)!r} must be a regular file; it is {kind}")
            return
        place = os.path.realpath(path)
        if place in self._seen:
            self._skip(_TWICE)
            return
        self._seen.add(place)
        self.files.append(path)

    def _fail(self, path: Path, reason: str) -> None:
        place = os.path.abspath(path)
        if place in self._seen:
            self._skip(_TWICE)
            return
        self._seen.add(place)
        self.failures[len(self.files)] = reason
        self.files.append(path)

    def _skip(self, kind: str, n: int = 1) -> None:
        if n:
            self.skipped[kind] += n


def described(skipped: Mapping[str, int]) -> str:
    """Return what was skipped as words, the most frequent kinds first."""
    kinds = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    n_others = sum(n for _, n in kinds[_SHOWN_KINDS:])
    others = [f"{n_others} others"] if n_others else []
    return ", ".join([f"{n} {kind}" for kind, n in kinds[:_SHOWN_KINDS]] + others)


def _is_own_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:  # the reader of pictures says so
        return b""


def _is_figure(path: Path) -> bool:
    """Return whether `msf` drew this: it says so, or it is the grid beside generated pictures, unmarked at first."""
    head = _head(path)
    if _FIGURE in head:
        return True
    if path.name != "grid.png" or _UNMARKED_FIGURE not in head:
        return False
    return any(_GENERATED.fullmatch(name) for name in os.listdir(path.parent))
