"""Files that a command writes: checked before the work, written as a whole, and kept elsewhere where that fails."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from msf.files.atomic import write_atomically


def check_target(path: Path | None, *, folder_to_come: Path | None = None) -> None:
    """Refuse a file of results that cannot be written, before any work is done for it.

    Args:
        path: The file; None: there is none.
        folder_to_come: A folder that the command makes; the file may lie in it.

    Raises:
        FileNotFoundError: Its folder does not exist.
        IsADirectoryError: It is a folder.
        OSError: It cannot be written.
        ValueError: It is called `-`, which elsewhere means standard output; that has the printed table.
    """
    if path is None:
        return
    if str(path) == "-":
        raise ValueError("results are written to a named file; '-' is none: the table is what standard output is for")
    folder = Path(os.path.realpath(path)).parent
    try:
        if path.is_dir():
            raise IsADirectoryError(f"results are written to a file; {str(path)!r} is a folder")
        if not folder.is_dir():
            if folder_to_come is not None and folder == Path(os.path.realpath(folder_to_come)):
                return
            raise FileNotFoundError(f"the folder of {str(path)!r} does not exist")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"{str(path)!r} cannot be written: it is protected")
        if not _is_stream(path):
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        if error.errno is None:  # said above
            raise
        raise type(error)(f"{str(path)!r} cannot be written: {error.strerror}") from error


def check_folder(path: Path) -> Path:
    """Return the path of a folder to write, or refuse one that cannot be made, before any work is done for it.

    Raises:
        NotADirectoryError: It, or what it would lie in, is a file.
        PermissionError: It cannot be written.
    """
    place = Path(os.path.realpath(path))
    existing = next(parent for parent in (place, *place.parents) if os.path.lexists(parent))
    if not existing.is_dir():
        raise NotADirectoryError(f"{str(path)!r} must be a folder; {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"{str(path)!r} cannot be written: {str(existing)!r} is protected")
    return path


def check_apart(targets: Mapping[str, Path | None], inputs: Iterable[Path]) -> None:
    """Refuse two results in one file, and a result in the place of what the command reads.

    Args:
        targets: Flag to path.
        inputs: What the command reads, or writes otherwise.

    Raises:
        ValueError: The text names the flags.
    """
    places: dict[str, str] = {}
    for flag, path in targets.items():
        if path is None or _is_stream(path):
            continue
        place = os.path.realpath(path)
        if place in places:
            raise ValueError(f"{places[place]} and {flag} must be different files; got {str(path)!r} for both")
        places[place] = flag
    for path in inputs:
        place = os.path.realpath(path)
        if place in places:
            raise ValueError(
                f"{places[place]} must not be a file that the command reads or writes otherwise; got {str(path)!r}"
            )


def write_result(path: Path, text: str | Callable[[], Iterable[str]]) -> None:
    """Write a result, as a whole or not at all; where that fails it is kept elsewhere, and the error says where.

    A link stays a link. Devices and pipes, such as /dev/stdout, are written to.

    Args:
        path: Where to.
        text: The content, or what makes its parts, one after another.

    Args:
        path: As `check_target` returned it.
        text: What it shall hold; characters that UTF-8 does not have are written as escapes.

    Raises:
        OSError: It could not be written.
    """
    parts = (lambda: [text]) if isinstance(text, str) else text

    def fill(place: Path) -> None:
        with place.open("wb") as file:
            for part in parts():
                file.write(part.encode("utf-8", "backslashreplace"))

    write_result_file(path, fill, lambda: "".join(parts()))


def write_result_file(path: Path, writer: Callable[[Path], object], text: Callable[[], str] | None = None) -> None:
    """Do the same for a result that `writer` writes to the path that it is given.

    Args:
        path: Where to.
        writer: Fills a file.
        text: Returns what it writes, to be printed where nothing can be written at all; None: it is no text.

    Raises:
        OSError: It could not be written.
    """
    try:
        if _is_stream(path):
            writer(path)
        else:
            write_atomically(os.path.realpath(path), writer)
    except OSError as error:
        reason = error.strerror or str(error)
        told = OSError(f"{str(path)!r} could not be written ({reason}): {_keep(path, writer, text)}")
        told.errno = error.errno
        raise told from error


def journal_beside(*targets: Path | None) -> Path | None:
    """Return the file for the rows that are finished, beside the first result that is a file; None: there is none."""
    files = [path for path in targets if path is not None and not _is_stream(path)]
    return files[0].with_name(f"{files[0].stem}.partial.jsonl") if files else None


def _keep(path: Path, writer: Callable[[Path], object], text: Callable[[], str] | None) -> str:
    try:
        descriptor, name = tempfile.mkstemp(prefix=f"{path.stem}-", suffix=path.suffix)
        os.close(descriptor)
        writer(Path(name))
    except OSError:
        if text is None:
            return "there is no place for what it should hold; the same command makes it again"
        print(text(), flush=True)
        return "what it should hold is printed above"
    return f"what it should hold is in {name!r}"


def _is_stream(path: Path) -> bool:
    return path.exists() and not path.is_file()
