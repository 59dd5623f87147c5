"""How many samples are evaluated at once, and how running out of memory is recognised."""

from __future__ import annotations

import os

import torch

# Where the network, not the launches, sets the pace; more only delays the first result and pads more at the end.
_LARGEST = {"cpu": 16, "cuda": 64}
# Up to here a micro-batch is filled up however little work there is, so that bits do not depend on the work.
_LARGEST_FILLED_UP = {"cpu": 64, "cuda": 1024}
# A U-Net keeps some hundred feature maps per map of its input alive, in the worst moment of an evaluation.
_WORKING_MAPS = 512
_SHARE_OF_MEMORY = 0.25
_OUT_OF_MEMORY_TEXTS = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc", "bad allocation")


def default_micro_batch(bytes_per_sample: int, device: torch.device) -> int:
    """Return how many samples are evaluated at once unless the caller says so.

    The largest power of two such that 512 working copies of each sample's inputs and noise fit into a quarter of the
    device's whole memory, but at most 16 on a CPU and 64 elsewhere. It is a function of the sample's size and of the
    machine: not of the number of inputs or samples, nor of what else is running.

    Args:
        bytes_per_sample: Size of one sample's inputs and noise together.
        device: Where the network runs.
    """
    fitting = int(_total_memory(device) * _SHARE_OF_MEMORY) // max(1, _WORKING_MAPS * bytes_per_sample)
    largest = _LARGEST.get(device.type, _LARGEST["cuda"])
    return largest if fitting >= largest else 1 << max(0, fitting.bit_length() - 1)


def largest_filled_up(device: torch.device) -> int:
    """Return up to which size a micro-batch is filled up with repetitions where there is less work than that."""
    return _LARGEST_FILLED_UP.get(device.type, _LARGEST_FILLED_UP["cuda"])


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that a smaller micro-batch might have fitted."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY_TEXTS)


def _total_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return 8 << 30
