"""The noise in the native extension: its operators and where they run. There is nothing to differentiate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels.philox_normal._allocation import fake_philox_normal_fwd, fake_philox_words_fwd

_normal_fwd = _ext.operator("philox_normal_fwd", fake_philox_normal_fwd)
_words_fwd = _ext.operator("philox_words_fwd", fake_philox_words_fwd)


def philox_normal_native(
    sample_index: Tensor,
    shape: Sequence[int],
    seed: int | Tensor,
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Run the native operator; [N] -> [N, *shape]."""
    noise: Tensor = _normal_fwd(sample_index, shape, int(seed), stream, dtype)
    return noise


def philox_words_native(counter: Tensor, key: Tensor) -> Tensor:
    """Run the native operator; [M, 4], [2] -> [M, 4]."""
    words: Tensor = _words_fwd(counter, key)
    return words


def native_normal_reasons(
    sample_index: Tensor, shape: Sequence[int], seed: int | Tensor, *, stream: int, dtype: torch.dtype
) -> list[str]:
    """Return why the native operator cannot serve these inputs; empty when it can."""
    reasons = _ext.tensor_reasons("philox_normal_fwd", (sample_index,))
    if isinstance(seed, Tensor) and (seed.device.type != "cpu" or torch.compiler.is_compiling()):
        reasons = [*reasons, "takes the seed as a number, or reads it on the CPU where nothing is traced"]
    return reasons


def native_words_reasons(counter: Tensor, key: Tensor) -> list[str]:
    """Return why the native operator cannot serve these inputs; empty when it can."""
    return _ext.tensor_reasons("philox_words_fwd", (counter,))
