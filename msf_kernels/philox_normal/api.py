"""The public noise: which number belongs to which sample and position, and which implementation serves a call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels._derivatives import Derivatives
from msf_kernels._ext import native_backend
from msf_kernels._triton.machine import tensor_reasons, triton_backend
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import FLOATING, require_int, require_same_device, require_shape, require_tensor
from msf_kernels.philox_normal._native import (
    native_normal_reasons,
    native_words_reasons,
    philox_normal_native,
    philox_words_native,
)
from msf_kernels.philox_normal._ops import philox_normal_triton, philox_words_triton
from msf_kernels.philox_normal._reference import philox_normal_reference, philox_words_reference
from msf_kernels.shapes import SampleIndex

IMAGE_STREAM = 0
SEMANTIC_STREAM = 1

# Four positions share one value of the 32-bit block counter.
MAX_POSITIONS = 4 * 2**32


def _normal_triton_reasons(
    sample_index: Tensor, shape: Sequence[int], seed: int | Tensor, *, stream: int, dtype: torch.dtype
) -> list[str]:
    tensors = (sample_index, seed) if isinstance(seed, Tensor) else (sample_index,)
    return tensor_reasons(tensors, (dtype,))


def _words_triton_reasons(counter: Tensor, key: Tensor) -> list[str]:
    return tensor_reasons((counter, key))


_normal_operator = Operator(
    "philox_normal",
    [
        triton_backend(philox_normal_triton, _normal_triton_reasons),
        native_backend(philox_normal_native, native_normal_reasons),
        Backend("reference", philox_normal_reference, derivatives=Derivatives.ALL),
    ],
)
_words_operator = Operator(
    "philox_words",
    [
        triton_backend(philox_words_triton, _words_triton_reasons),
        native_backend(philox_words_native, native_words_reasons),
        Backend("reference", philox_words_reference, derivatives=Derivatives.ALL),
    ],
)


def philox_normal(
    sample_index: SampleIndex,
    shape: Sequence[int],
    seed: int | Tensor,
    *,
    stream: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Draw standard normal noise whose values depend on (seed, stream, sample index, position) only.

        block = position // 4
        counter = (block, stream, low(sample_index), high(sample_index)), key = (low(seed), high(seed))
        (x_0, x_1, x_2, x_3) = Philox4x32-10(counter, key)
        u(x) = fp32(x) * 2^-32 + 2^-33, in (0, 1]
        normals 4 block, 4 block + 1 = sqrt(-2 ln u(x_0)) * (cos, sin)(2 pi u(x_1)); the next two from x_2 and x_3

    `position` counts inside one sample, row-major over `shape`; low and high are the 32-bit halves. So a sample gets
    the same noise alone or in any batch, and the first positions do not depend on how many follow.

    Args:
        sample_index: Identity of each sample; [N], int64, any stride; all 64 bits count.
        shape: Axes of one sample, such as `(C, H, W)`; sizes >= 0, at most 2^34 positions.
        seed: Key of the generator, in [0, 2^63); or an int64 tensor [] with one, on the device of `sample_index`, whose
            range is not checked, because a GPU would have to be waited for: for CUDA graphs, which then serve any
            seed.
        stream: Which of the independent noises of a sample, in [0, 2^32): `IMAGE_STREAM`, `SEMANTIC_STREAM`, or one
            of your own.
        dtype: float16, bfloat16, float32 or float64. The values are those of float32, converted.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        [N, *shape], contiguous, on the device of `sample_index`.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: A size, seed or stream out of range, or too many positions.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        The integers are exact, and the same for a seed given as a number and in a tensor. The reference takes u in
        float32 and the rest in float64; other backends agree with it to 2e-6 absolute, and each gives the same bits for
        a sample whatever batch it is drawn in. The largest magnitude is 6.77, the smallest spacing of u is 2^-33 next
        to zero. Not differentiable.

    Source:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10); Box and Muller 1958.
    """
    require_tensor("sample_index", sample_index, "[N]", (torch.int64,))
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape must be a sequence of integers; got {type(shape).__name__}")
    for axis, size in enumerate(shape):
        require_int(f"shape[{axis}]", size, minimum=0)
    if math.prod(shape) > MAX_POSITIONS:
        raise ValueError(f"shape must have at most 2^34 positions; got {list(shape)}")
    if isinstance(seed, Tensor):
        require_tensor("seed", seed, None, (torch.int64,))
        require_shape("seed", seed, "[]", ())
        require_same_device("seed", seed, "sample_index", sample_index)
    else:
        require_int("seed", seed, minimum=0, below=2**63)
    require_int("stream", stream, minimum=0, below=2**32)
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATING:
        raise TypeError(f"dtype must be {' or '.join(str(allowed) for allowed in FLOATING)}; got {dtype}")
    noise: Tensor = _normal_operator(backend, sample_index, tuple(shape), seed, stream=stream, dtype=dtype)
    return noise


def philox_words(counter: Tensor, key: Tensor, *, backend: str = "auto") -> Tensor:
    """Compute the raw integer stream that `philox_normal` is made from: ten rounds of Philox4x32.

        (x_0, x_1, x_2, x_3) = Philox4x32-10((c_0, c_1, c_2, c_3), (k_0, k_1))

    Useful to compare a backend with the generator's published test vectors, or to draw integers.

    Args:
        counter: Counter words c_0..c_3; [M, 4], int64 holding words in [0, 2^32); higher bits are ignored.
        key: Key words k_0, k_1; [2], int64 holding words in [0, 2^32); higher bits are ignored.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        [M, 4], int64 holding words in [0, 2^32), contiguous, on the device of `counter`.

    Raises:
        TypeError: An argument of another type or dtype.
        ValueError: Other axes, or two devices.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Exact; the same on every backend.

    Source:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3 (Philox4x32-10).
    """
    require_tensor("counter", counter, "[M, 4]", (torch.int64,))
    require_shape("counter", counter, "[M, 4]", (counter.shape[0], 4))
    require_tensor("key", key, "[2]", (torch.int64,))
    require_shape("key", key, "[2]", (2,))
    require_same_device("key", key, "counter", counter)
    words: Tensor = _words_operator(backend, counter, key)
    return words
