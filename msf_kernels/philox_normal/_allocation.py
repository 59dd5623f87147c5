"""Outputs of the noise's operators before they are filled: what kernels allocate and what fakes promise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fake_philox_normal_fwd(
    sample_index: Tensor, shape: Sequence[int], seed: int | Tensor, stream: int, dtype: torch.dtype
) -> Tensor:
    """Return what `philox_normal_fwd` of any family of operators allocates."""
    return sample_index.new_empty((sample_index.shape[0], *shape), dtype=dtype)


def fake_philox_words_fwd(counter: Tensor, key: Tensor) -> Tensor:
    """Return what `philox_words_fwd` of any family of operators allocates."""
    return counter.new_empty((counter.shape[0], 4))
