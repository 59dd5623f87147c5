"""Order of the pictures in training: a function of (seed, epoch), so that a run resumes at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def seeded_generator(*words: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose stream depends on all the words, such as (seed, epoch) or (seed, step).

    Neighbouring words give unrelated streams: the words are hashed (SHA-256).

    Args:
        *words: Whole numbers >= 0.
        device: Device of the generator.

    Raises:
        ValueError: A negative word, or none at all.
    """
    if not words or min(words) < 0:
        raise ValueError(f"seed words must be whole numbers >= 0, at least one; got {words}")
    digest = hashlib.sha256(",".join(map(str, words)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of n pictures in an epoch: int64 [n], a permutation that (seed, epoch) determines."""
    return torch.randperm(n, generator=seeded_generator(seed, epoch))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int, *, first_batch: int = 0) -> Iterator[Tensor]:
    """Yield the picture numbers of an epoch's batches, in the order of `epoch_order`.

    Args:
        n: Pictures.
        batch_size: Pictures per batch, >= 1; the last batch holds what is left.
        seed: Seed of the run, >= 0.
        epoch: Number of the epoch, >= 0.
        first_batch: Batches to leave out at the start: those that an interrupted run has already seen.

    Yields:
        int64 [batch_size], the last one shorter.

    Raises:
        ValueError: A number out of range.
    """
    if batch_size < 1 or first_batch < 0:
        raise ValueError(f"batch_size must be >= 1 and first_batch >= 0; got {batch_size} and {first_batch}")
    order = epoch_order(n, seed, epoch)
    for start in range(first_batch * batch_size, n, batch_size):
        yield order[start : start + batch_size]
