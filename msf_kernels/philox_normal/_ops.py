"""The noise as operators of torch.library: schemas, fakes and CPU bodies. There is nothing to differentiate.

`msf_triton::philox_normal_fwd`, the same with a seed in memory, and `msf_triton::philox_words_fwd` are what
`torch.compile` and CUDA graphs see of a call. No FLOP formula: apart from the Box-Muller transform the work is integer
arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels._triton.registration import register
from msf_kernels.philox_normal._allocation import fake_philox_normal_fwd, fake_philox_words_fwd
from msf_kernels.philox_normal._reference import philox_normal_reference, philox_words_reference


def _normal_formula(
    sample_index: Tensor, shape: Sequence[int], seed: int | Tensor, stream: int, dtype: torch.dtype
) -> Tensor:
    return philox_normal_reference(sample_index, shape, seed, stream=stream, dtype=dtype)


_normal_fwd = register(
    "philox_normal_fwd",
    kernel="msf_kernels.philox_normal._triton:launch_philox_normal_fwd",
    formula=_normal_formula,
    fake=fake_philox_normal_fwd,
)
_normal_seed_on_device_fwd = register(
    "philox_normal_seed_on_device_fwd(Tensor sample_index, SymInt[] shape, Tensor seed, SymInt stream, "
    "ScalarType dtype) -> Tensor",
    kernel="msf_kernels.philox_normal._triton:launch_philox_normal_fwd",
    formula=_normal_formula,
    fake=fake_philox_normal_fwd,
)
_words_fwd = register(
    "philox_words_fwd",
    kernel="msf_kernels.philox_normal._triton:launch_philox_words_fwd",
    formula=philox_words_reference,
    fake=fake_philox_words_fwd,
)


def philox_normal_triton(
    sample_index: Tensor,
    shape: Sequence[int],
    seed: int | Tensor,
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Run the registered operator for the kind of seed; [N] -> [N, *shape]."""
    run = _normal_seed_on_device_fwd if isinstance(seed, Tensor) else _normal_fwd
    noise: Tensor = run(sample_index, shape, seed, stream, dtype)
    return noise


def philox_words_triton(counter: Tensor, key: Tensor) -> Tensor:
    """Run the registered operator; [M, 4], [2] -> [M, 4]."""
    words: Tensor = _words_fwd(counter, key)
    return words
