"""Pictures that are the same, or nearly so: perceptual hashes and their distances."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

HASH_SIDE = 16
HASH_BITS = HASH_SIDE**2
NEAR_BITS = 16
_BLOCK_PAIRS = 2**24


def perceptual_hash(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return the 256 bits of a picture's perceptual hash: signs of its lowest cosine frequencies against their median.

    Args:
        picture: uint8 [H, W, 1] or [H, W, 3].

    Source:
        `phash` of the package imagehash.
    """
    import imagehash

    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    return np.packbits(imagehash.phash(image, hash_size=HASH_SIDE).hash).tobytes()


def near_pairs(
    first: np.ndarray[Any, np.dtype[np.uint64]],
    second: np.ndarray[Any, np.dtype[np.uint64]],
    most_bits: int = NEAR_BITS,
) -> Iterator[tuple[int, int, int]]:
    """Yield pairs of hashes that differ in few bits, with the number of bits, in ascending order of rows.

    Args:
        first: [N, 4].
        second: [M, 4].
        most_bits: Bits that may differ.

    Numerics:
        All N x M pairs are compared, in blocks of bounded memory.
    """
    per_block = max(1, _BLOCK_PAIRS // max(1, len(second)))
    for start in range(0, len(first), per_block):
        block = first[start : start + per_block]
        bits = np.zeros((len(block), len(second)), np.uint16)
        for word in range(first.shape[1]):
            bits += np.bitwise_count(block[:, word, None] ^ second[None, :, word])
        for row, column in zip(*np.nonzero(bits <= most_bits), strict=True):
            yield start + int(row), int(column), int(bits[row, column])
