"""Which files are pictures: those that are named, and those that lie in folders that are named."""

from __future__ import annotations

import functools
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from msf.data.dicom import DICOM_SUFFIXES, is_dicom
from msf.data.pictures import NIFTI_SUFFIXES

FIGURE_MARK = "MedSymmFlow figure"
"""What the PNG field `Software` of a drawn figure says, so that a figure is not taken for a picture."""

# Pillow knows them by name and does not decode them, or only with another program; or the reader refuses them.
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "ICNS", "ICO", "MPEG", "WMF")
_VOLUMES = (*NIFTI_SUFFIXES, ".mha", ".mhd", ".nrrd")
_DICOM_INDEX = "DICOMDIR"
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
    is taken from them if its suffix is that of a format that Pillow decodes or of DICOM, or if it has none and DICOM's
    mark. Links to files are followed; links to folders are not, so that a search ends. Hidden files and folders, and
    figures that `msf` drew, are skipped. A picture that is reached in two ways is taken once.

    Args:
        paths: Files and folders. Those that do not exist, or cannot be read, are told in `failures`.
    """
    search = ImageSearch()
    files: list[Path] = []
    failures: dict[int, str] = {}
    for name, failure in search.found(paths):
        if failure is not None:
            failures[len(files)] = failure
        files.append(Path(name))
    return FoundImages(files, failures, search.skipped)


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


class ImageSearch:
    """The search of `search_images`, file by file: a million of them are never a list here.

    Attributes:
        skipped: What was no picture so far: kind and number.
    """

    def __init__(self) -> None:
        """Start with nothing found."""
        self.skipped: Counter[str] = Counter()
        self._seen: set[str] = set()

    def found(self, paths: Iterable[Path]) -> Iterator[tuple[str, str | None]]:
        """Yield paths of pictures, each once, with what is wrong with those that cannot be read."""
        for path in paths:
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                yield from self._failed(str(path), f"picture {str(path)!r} does not exist")
            except OSError as error:
                yield from self._failed(str(path), f"picture {str(path)!r} cannot be read: {error.strerror or error}")
            else:
                if stat.S_ISDIR(mode):
                    yield from self._in_folder(path)
                else:
                    yield from self._taken(str(path), os.path.realpath(path), mode)

    def _in_folder(self, root: Path) -> Iterator[tuple[str, str | None]]:
        skipped_before, n_found = self.skipped.copy(), 0
        n_twice = self.skipped[_TWICE]
        for found in self._below(root):
            n_found += 1
            yield found
        if not n_found and self.skipped[_TWICE] == n_twice:
            inside = described(self.skipped - skipped_before)
            yield from self._failed(
                str(root), f"folder {str(root)!r} holds no pictures{f', but {inside}' if inside else ''}"
            )

    def _below(self, root: Path) -> Iterator[tuple[str, str | None]]:
        """Yield what there is at every depth, in the order of names."""
        # Real places are put together from the root's: none of these folders is a link.
        waiting = [self._entries(root, os.path.realpath(root))]
        while waiting:
            entry, place = next(waiting[-1], (None, ""))
            if entry is None:
                waiting.pop()
            elif isinstance(entry, str):
                yield from self._failed(place, entry)
            elif _is_own_folder(entry):
                waiting.append(self._entries(Path(entry.path), place))
            else:
                yield from self._found(entry, place)

    def _entries(self, folder: Path, place: str) -> Iterator[tuple[os.DirEntry[str] | str, str]]:
        """Yield a folder's entries with their real places; or what is wrong, with the folder's path."""
        try:
            with os.scandir(folder) as listed:
                entries = list(listed)
        except OSError as error:
            yield f"folder {str(folder)!r} cannot be searched: {error.strerror or error}", str(folder)
            return
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        self._skip("hidden", len(entries) - len(shown))
        shown.sort(key=lambda entry: entry.name)
        for entry in shown:
            yield entry, os.path.join(place, entry.name)

    def _found(self, entry: os.DirEntry[str], place: str) -> Iterator[tuple[str, str | None]]:
        # `folder / name`, so that a search in "." finds "a.png" and not "./a.png".
        path = Path(entry.path)
        suffix, is_known = _suffix(path), _suffix(path) in (*readable_suffixes(), *DICOM_SUFFIXES)
        try:
            if entry.is_symlink():
                mode, place = path.stat().st_mode, os.path.realpath(path)
            else:
                mode = stat.S_IFREG if entry.is_file(follow_symlinks=False) else path.stat().st_mode
        except OSError as error:
            if is_known:
                what = "is a link to nothing" if path.is_symlink() else f"cannot be read: {error.strerror or error}"
                yield from self._failed(str(path), f"picture {str(path)!r} {what}")
            else:
                self._skip(suffix or "without suffix")
            return
        if stat.S_ISDIR(mode):
            self._skip("links to folders (name them to have them searched)")
        elif suffix in _VOLUMES:
            self._skip("NIfTI and the like (name one to see the command that makes slices of it)")
        elif not is_known and (suffix or not stat.S_ISREG(mode) or not is_dicom(path) or path.name == _DICOM_INDEX):
            self._skip(suffix or "without suffix")
        elif suffix == ".png" and stat.S_ISREG(mode) and _is_figure(path):
            self._skip("figures drawn by msf")
        else:
            yield from self._taken(str(path), place, mode)

    def _taken(self, path: str, place: str, mode: int) -> Iterator[tuple[str, str | None]]:
        if not stat.S_ISREG(mode):
            kind = next((name for is_kind, name in _KINDS.items() if is_kind(mode)), "no file")
            yield from self._failed(path, f"picture {path!r} must be a regular file; it is {kind}")
        elif place in self._seen:
            self._skip(_TWICE)
        else:
            self._seen.add(place)
            yield path, None

    def _failed(self, path: str, reason: str) -> Iterator[tuple[str, str | None]]:
        place = os.path.abspath(path)
        if place in self._seen:
            self._skip(_TWICE)
            return
        self._seen.add(place)
        yield path, reason

    def _skip(self, kind: str, n: int = 1) -> None:
        if n:
            self.skipped[kind] += n


def described(skipped: Mapping[str, int]) -> str:
    """Return what was skipped as words, the most frequent kinds first."""
    kinds = sorted(skipped.items(), key=lambda item: (-item[1], item[0]))
    n_others = sum(n for _, n in kinds[_SHOWN_KINDS:])
    others = [f"{n_others} others"] if n_others else []
    return ", ".join([f"{n} {kind}" for kind, n in kinds[:_SHOWN_KINDS]] + others)


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
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
