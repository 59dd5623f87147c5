"""The public training path: what it computes, which inputs it takes, which implementation serves a call."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels._derivatives import Derivatives, any_requires_grad
from msf_kernels._ext import native_backend
from msf_kernels._triton.machine import tensor_reasons, triton_backend
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import (
    require_finite,
    require_int,
    require_same_device,
    require_same_dtype,
    require_shape,
    require_tensor,
)
from msf_kernels.shapes import ImageBatch, JointState, SampleIndex, SemanticBatch, TimeBatch
from msf_kernels.symmetric_path._native import native_reasons, symmetric_path_native
from msf_kernels.symmetric_path._ops import symmetric_path_triton
from msf_kernels.symmetric_path._reference import symmetric_path_reference

_POSITIONS_LIMIT = 2**31


def _triton_reasons(
    image: Tensor, semantic: Tensor, t: Tensor, *, sample_index: Tensor, seed: int, sigma_min: float
) -> list[str]:
    reasons = tensor_reasons((image, semantic, t, sample_index))
    if max(image.shape[1:].numel(), semantic.shape[1:].numel()) >= _POSITIONS_LIMIT:
        reasons.append("an item has 2^31 positions or more")
    return reasons


def _gradient_reasons(
    image: Tensor, semantic: Tensor, t: Tensor, *, sample_index: Tensor, seed: int, sigma_min: float
) -> list[str]:
    has_time = any_requires_grad([t])
    return ["a gradient with respect to t exists on the reference only"] if has_time else []


_OF_KERNELS = {"derivatives": Derivatives.REVERSE, "gradient_reasons": _gradient_reasons}

_operator = Operator(
    "symmetric_path",
    [
        triton_backend(symmetric_path_triton, _triton_reasons, **_OF_KERNELS),
        native_backend(symmetric_path_native, native_reasons, **_OF_KERNELS),
        Backend("reference", symmetric_path_reference, derivatives=Derivatives.ALL),
    ],
)


def symmetric_path(
    image: ImageBatch,
    semantic: SemanticBatch,
    t: TimeBatch,
    *,
    sample_index: SampleIndex,
    seed: int,
    sigma_min: float = 1e-4,
    backend: str = "auto",
) -> tuple[JointState, JointState]:
    """Compute a point of the symmetric path and the velocity there, with noise made on the way and never stored.

        image part:    z = (1 - (1 - s) t) noise_image + t image         dz = image - (1 - s) noise_image
        semantic part: z = (1 - (1 - s) t) semantic + t noise_semantic   dz = noise_semantic - (1 - s) semantic

    with s = `sigma_min`. The noise is `philox_normal(sample_index, (C, H, W), seed, stream=IMAGE_STREAM)` for the image
    and the same with `(K, H, W)` and `SEMANTIC_STREAM` for the semantic channels, so a training item can be made again
    from its index and the seed alone.

    Args:
        image: Picture at t = 1; [N, C, H, W]; float16, bfloat16, float32 or float64; any strides. Any axis
            may be empty.
        semantic: Code of the label at t = 0; [N, K, H, W]; dtype of `image`; any strides.
        t: Time per item, [N], or one per stream, [N, 2] as (t_image, t_semantic); in [0, 1]; any floating dtype.
        sample_index: Identity of each item, which decides its noise; [N], int64.
        seed: Key of the noise, in [0, 2^63).
        sigma_min: Smallest noise of the path, in [0, 1).
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        `(z_t, dz_t)`: [N, C + K, H, W] each, image channels first, in the dtype and on the device of `image`;
        channels-last where `image` or `semantic` is channels-last, else contiguous.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Axes, sizes or devices that do not fit; `seed` or `sigma_min` out of range.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Arithmetic in float32 (float64 when `image` is float64), one rounding at the end; the noise is that of float32
        in either case. Differentiable with respect to `image` and `semantic`, on the reference also to `t`, to any
        order; forward mode and the transforms of `torch.func` on the reference only. `auto` takes the reference where
        only that serves. Backward needs `t` only. Deterministic; an item's result does not depend on the other items of
        the batch.

    Source:
        MedSymmFlow, arXiv 2507.19098; SymmFlow, arXiv 2506.10634.
    """
    require_tensor("image", image, "[N, C, H, W]")
    n, _, height, width = image.shape
    require_tensor("semantic", semantic, "[N, K, H, W]")
    require_same_dtype("semantic", semantic, "image", image)
    require_shape("semantic", semantic, "[N, K, H, W] of image", (n, semantic.shape[1], height, width))
    if not isinstance(t, Tensor) or t.dim() != 2:
        require_tensor("t", t, "[N]")
    else:
        require_tensor("t", t, "[N, 2]")
    require_shape("t", t, "[N] or [N, 2] of image", (n,), (n, 2))
    require_tensor("sample_index", sample_index, "[N]", (torch.int64,))
    require_shape("sample_index", sample_index, "[N] of image", (n,))
    for name, other in (("semantic", semantic), ("t", t), ("sample_index", sample_index)):
        require_same_device(name, other, "image", image)
    require_int("seed", seed, minimum=0, below=2**63)
    require_finite("sigma_min", sigma_min)
    if not 0 <= sigma_min < 1:
        raise ValueError(f"sigma_min must be in [0, 1); got {sigma_min}")
    path: tuple[Tensor, Tensor] = _operator(
        backend, image, semantic, t, sample_index=sample_index, seed=seed, sigma_min=float(sigma_min)
    )
    return path
