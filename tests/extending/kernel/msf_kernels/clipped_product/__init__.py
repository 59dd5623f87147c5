"""The public clipped product: what it computes, which inputs it takes, which implementation serves a call."""

from __future__ import annotations

import torch
from msf_kernels.clipped_product._reference import clipped_product_reference
from torch import Tensor

from msf_kernels._derivatives import Derivatives
from msf_kernels._triton.machine import tensor_reasons, triton_backend
from msf_kernels._triton.registration import register
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import require_positive, require_same_device, require_same_dtype, require_shape, require_tensor

__all__ = ["clipped_product"]


def _fake(x: Tensor, y: Tensor, limit: float) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


_triton = register(
    "clipped_product_fwd(Tensor x, Tensor y, float limit) -> Tensor",
    kernel="msf_kernels.clipped_product._triton:launch_clipped_product",
    formula=clipped_product_reference,
    fake=_fake,
)


def _triton_reasons(x: Tensor, y: Tensor, limit: float) -> list[str]:
    return tensor_reasons((x, y))


_operator = Operator(
    "clipped_product",
    [
        triton_backend(_triton, _triton_reasons),
        Backend("reference", clipped_product_reference, derivatives=Derivatives.ALL),
    ],
)


def clipped_product(x: Tensor, y: Tensor, limit: float, *, backend: str = "auto") -> Tensor:
    """Multiply two tensors, element by element, and hold the product between -limit and limit.

    Args:
        x: Any shape; float16, bfloat16, float32 or float64.
        y: Of the shape and dtype of `x`.
        limit: Finite, > 0.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        A tensor of the shape and dtype of `x`, contiguous.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Shapes or devices that do not fit; `limit` not finite and > 0.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Arithmetic in float32 (float64 when `x` is float64), one rounding at the end.

    Source:
        Made up.
    """
    require_tensor("x", x, None)
    require_tensor("y", y, None)
    require_same_dtype("y", y, "x", x)
    require_same_device("y", y, "x", x)
    require_shape("y", y, "the shape of x", x.shape)
    require_positive("limit", limit)
    result: Tensor = _operator(backend, x, y, float(limit))
    return result
