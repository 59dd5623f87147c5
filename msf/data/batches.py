"""Order of the pictures in training: a function of (seed, epoch), so that a run resumes at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from msf_kernels.shapes import Labels


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


def balanced_order(labels: Labels, seed: int, epoch: int) -> Tensor:
    """Return as many numbers of pictures as there are, of every class equally many, in random order.

    Pictures of a frequent class are left out, those of a rare one come again; of one class none comes twice before all
    have come once. Which classes have one more, where the number is not divisible, is drawn too.

    Args:
        labels: Classes of the pictures; int64 [N], N >= 1.
        seed: Seed of the run, >= 0.
        epoch: Number of the epoch, >= 0. Both together determine the order.

    Returns:
        int64 [N].
    """
    generator = seeded_generator(seed, epoch)
    n, classes = len(labels), labels.bincount().nonzero()[:, 0]
    wanted = torch.full((len(classes),), n // len(classes))
    wanted[torch.randperm(len(classes), generator=generator)[: n % len(classes)]] += 1
    chosen = []
    for label, n_wanted in zip(classes, wanted.tolist(), strict=True):
        own = (labels == label).nonzero()[:, 0]
        passes = [own[torch.randperm(len(own), generator=generator)] for _ in range(-(-n_wanted // len(own)))]
        chosen.append(torch.cat(passes)[:n_wanted] if passes else own[:0])
    return torch.cat(chosen)[torch.randperm(n, generator=generator)]


def epoch_batches(
    n: int, batch_size: int, seed: int, epoch: int, *, first_batch: int = 0, balanced_by: Labels | None = None
) -> Iterator[Tensor]:
    """Yield the picture numbers of an epoch's batches, in the order of `epoch_order`, or of `balanced_order`.

    Args:
        n: Pictures.
        batch_size: Pictures per batch, >= 1; the last batch holds what is left.
        seed: Seed of the run, >= 0.
        epoch: Number of the epoch, >= 0.
        first_batch: Batches to leave out at the start: those that an interrupted run has already seen.
        balanced_by: Classes of the pictures, int64 [n], for batches with every class equally often.

    Yields:
        int64 [batch_size], the last one shorter.

    Raises:
        ValueError: A number out of range.
    """
    if batch_size < 1 or first_batch < 0:
        raise ValueError(f"batch_size must be >= 1 and first_batch >= 0; got {batch_size} and {first_batch}")
    order = epoch_order(n, seed, epoch) if balanced_by is None else balanced_order(balanced_by, seed, epoch)
    for start in range(first_batch * batch_size, n, batch_size):
        yield order[start : start + batch_size]
