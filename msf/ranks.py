"""Which of how many processes this is, as their launcher tells them, known before anything heavy is imported."""

from __future__ import annotations

import os

# torchrun and accelerate launch; Open MPI; MPICH and Intel MPI.
_NAMES = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))


def place() -> tuple[int, int]:
    """Return the number of this process, from 0, and how many there are; (0, 1) without a launcher."""
    for rank, size in _NAMES:
        numbers = os.environ.get(rank, ""), os.environ.get(size, "")
        if all(number.isdecimal() for number in numbers) and int(numbers[1]) > 1:
            return int(numbers[0]), int(numbers[1])
    return 0, 1


def is_main() -> bool:
    """Return whether this process speaks and writes for all of them."""
    return place()[0] == 0


class ProcessLostError(RuntimeError):
    """Another process of the same run has ended, so that this one cannot go on."""
