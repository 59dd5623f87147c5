"""Philox4x32-10 and Box-Muller in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

WORD_MASK = 0xFFFFFFFF
N_ROUNDS = 10

# Multipliers minus 2^32: the product with a 32-bit word then fits a signed 64-bit integer, and the missing
# word * 2^32 is added back to the high half.
_MULTIPLIER_0 = 0xD2511F53 - 2**32
_MULTIPLIER_1 = 0xCD9E8D57 - 2**32
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85


def philox_words_reference(counter: Tensor, key: Tensor) -> Tensor:
    """Compute what `msf_kernels.philox_words` documents; [M, 4], [2] -> [M, 4]."""
    c_0, c_1, c_2, c_3 = (counter & WORD_MASK).unbind(1)
    key_0, key_1 = (key & WORD_MASK).unbind(0)
    return torch.stack(_philox(c_0, c_1, c_2, c_3, key_0, key_1), dim=1)


def philox_normal_reference(
    sample_index: Tensor,
    shape: Sequence[int],
    seed: int | Tensor,
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute what `msf_kernels.philox_normal` documents; [N] -> [N, *shape]."""
    n, size = sample_index.shape[0], math.prod(shape)
    # The mask changes no value. It keeps Inductor from treating the products as array offsets, in which it assumes
    # 32 bits (torch 2.13: (arange * multiplier) >> 32 comes out wrong).
    block = torch.arange((size + 3) // 4, dtype=torch.int64, device=sample_index.device) & WORD_MASK
    # Tensors, not numbers: a compiled caller need not be compiled again for another seed.
    stream_word, key = (
        number.reshape(1, 1) if isinstance(number, Tensor) else torch.full((1, 1), number, device=sample_index.device)
        for number in (stream, seed)
    )
    x_0, x_1, x_2, x_3 = _philox(
        block[None, :],
        stream_word,
        (sample_index & WORD_MASK)[:, None],
        ((sample_index >> 32) & WORD_MASK)[:, None],
        key & WORD_MASK,
        (key >> 32) & WORD_MASK,
    )  # each [N, blocks]
    normals = torch.stack([*_box_muller(x_0, x_1), *_box_muller(x_2, x_3)], dim=2)  # [N, blocks, 4]
    return normals.flatten(1)[:, :size].to(dtype).contiguous().view(n, *shape)


def _philox(
    c_0: Tensor, c_1: Tensor, c_2: Tensor, c_3: Tensor, key_0: Tensor, key_1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the ten rounds on words in [0, 2^32) held in int64; shapes broadcast."""
    for _ in range(N_ROUNDS):
        product_0, product_1 = c_0 * _MULTIPLIER_0, c_2 * _MULTIPLIER_1
        high_0, high_1 = (product_0 >> 32) + c_0, (product_1 >> 32) + c_2
        c_0, c_1 = high_1 ^ c_1 ^ key_0, product_1 & WORD_MASK
        c_2, c_3 = high_0 ^ c_3 ^ key_1, product_0 & WORD_MASK
        key_0, key_1 = (key_0 + _WEYL_0) & WORD_MASK, (key_1 + _WEYL_1) & WORD_MASK
    return c_0, c_1, c_2, c_3


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Return two independent normals in fp32 from two words."""
    radius = (-2 * _uniform(radius_word).log()).sqrt()
    angle = _uniform(angle_word) * (2 * math.pi)
    return (radius * angle.cos()).float(), (radius * angle.sin()).float()


def _uniform(word: Tensor) -> Tensor:
    """Map a word to (0, 1]: rounded to fp32 as every backend rounds it, then widened so that what follows is exact."""
    return (word.float() * 2.0**-32 + 2.0**-33).double()
