"""What libraries raise where a file is damaged, and how such an error is told in one line."""

from __future__ import annotations

import lzma
import pickle
import struct
import zipfile
import zlib

# A parser that meets bytes that nobody wrote raises any of these, depending on where it stands.
DAMAGE: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,  # RecursionError among them
    SyntaxError,
    TypeError,
    ValueError,  # UnicodeDecodeError among them
    lzma.LZMAError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


_LONGEST = 300  # characters: some errors quote the file


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, shortened, or the name of its class where it has none."""
    line = str(error).strip().partition("\n")[0].strip()
    return (line if len(line) <= _LONGEST else f"{line[:_LONGEST]}...") or type(error).__name__
