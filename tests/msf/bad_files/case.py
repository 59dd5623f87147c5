"""What a bad file is, and the list of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NESTED = "[" * 200_000


@dataclass(frozen=True)
class BadFile:
    """A file, or a folder of files, that a reader must refuse.

    Args:
        name: What is wrong, unique with the kind.
        kind: Which reader it is for: npz (a data set), npy, checkpoint (a folder), autoencoder (a folder), official (a
            checkpoint of the authors' code), training_state, picture.
        make: Writes it into an empty folder; returns the path that a user would name.
        wanted: Regular expression that the message must match.
    """

    name: str
    kind: str
    make: Callable[[Path], Path]
    wanted: str

    def __str__(self):
        return f"{self.kind}: {self.name}"


BAD_FILES: list[BadFile] = []


def add(kind, name, wanted, make):
    BAD_FILES.append(BadFile(name, kind, make, wanted))
