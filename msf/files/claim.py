"""A folder that one process writes into: made, tried, and closed to others."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"


@contextmanager
def claimed_folder(folder: str | os.PathLike[str], user: str) -> Iterator[Path]:
    """Keep a folder for this process until the block ends; a killed process leaves it free.

    Args:
        folder: Created if missing, with its parents; removed again if the block leaves it empty.
        user: What uses it, for the message: `training`.

    Yields:
        The folder.

    Raises:
        NotADirectoryError: It, or one of its parents, is a file.
        PermissionError: It cannot be made or written.
        ValueError: Another process, or another thread of this one, has claimed it.
        OSError: Something else is wrong with the place, such as a full disk.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    lock = FileLock(folder / LOCK_FILE)  # of the operating system, which takes it from a dead process
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"folder {str(folder)!r} is in use by another {user}: wait until that ends, or choose another folder"
        ) from None
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"folder must be a folder, or a place where one can be made; got {str(folder)!r}, which is a file or lies "
            "below one"
        ) from error
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise PermissionError(f"folder {str(folder)!r} cannot be written: choose another one") from error
    try:
        yield folder
    finally:
        with suppress(OSError):
            (folder / LOCK_FILE).unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
        lock.release()
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()
