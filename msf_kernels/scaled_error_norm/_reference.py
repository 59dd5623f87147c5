"""The error ratio in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels.fixed_order import rms_norm
from msf_kernels.rk_combine import rk_combine


def scaled_error_norm_reference(
    state: Tensor,
    next_state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    rtol: float,
    atol: float,
) -> Tensor:
    """Compute what `msf_kernels.scaled_error_norm` documents."""
    dtype = torch.float64 if state.dtype == torch.float64 else torch.float32
    nothing = torch.zeros_like(state, dtype=dtype)
    error = rk_combine(nothing, slopes, weights, dt, backend="reference")
    largest = torch.maximum(state.abs(), next_state.abs()).to(dtype)
    return rms_norm(error / (atol + rtol * largest))
