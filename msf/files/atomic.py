"""Write a file so that a reader, or a restart after a kill, finds the old content or the new, never a part."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], writer: Callable[[Path], object]) -> None:
    """Create or replace a file in one step.

    `writer` fills a temporary file in the same folder, which is flushed to the disk and then renamed to `path`. The
    temporary file is removed if that fails; one that a killed process left is removed by the next call for `path`.

    Args:
        path: File to create or replace; its folder exists.
        writer: Called with the temporary file's path, which ends with the suffix of `path`, for writers that choose
            a format by it.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: The disk is full or not writable; the old content then stays, as after any exception of `writer`,
            which arrives unchanged, but for the name of the file where it has none.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {str(path)!r} does not exist")
    _remove_left_behind(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex}{path.suffix}")
    try:
        writer(temporary)
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        _flush_to_disk(path.parent)  # the rename itself


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_left_behind(path: Path) -> None:
    if os.name != "posix":
        return  # no harmless way to ask whether a process lives
    pattern = re.compile(rf"\.{re.escape(path.stem)}\.(\d+)-[0-9a-f]{{32}}{re.escape(path.suffix)}")
    for sibling in path.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and not _is_alive(int(match[1])):
            sibling.unlink(missing_ok=True)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)  # signal 0 checks only
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
