"""The combination in the native extension: its operators, their gradients, and what they do not take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels.rk_combine._allocation import (
    fake_rk_combine_bwd,
    fake_rk_combine_bwd_dt,
    fake_rk_combine_cast_fwd,
    fake_rk_combine_fwd,
    fake_rk_combine_out,
)
from msf_kernels.rk_combine._autograd import RkCombineOperators, differentiable

_MAX_SLOPES = 16

rk_combine_native = differentiable(
    RkCombineOperators(
        fwd=_ext.operator("rk_combine_fwd", fake_rk_combine_fwd),
        cast_fwd=_ext.operator("rk_combine_cast_fwd", fake_rk_combine_cast_fwd),
        out=_ext.operator("rk_combine_out", fake_rk_combine_out),
        bwd=_ext.operator("rk_combine_bwd", fake_rk_combine_bwd),
        bwd_dt=_ext.operator("rk_combine_bwd_dt", fake_rk_combine_bwd_dt),
    )
)


def native_reasons(
    state: Tensor,
    slopes: Sequence[Tensor],
    weights: Sequence[float],
    dt: float | Tensor,
    *,
    out: Tensor | None,
    cast_to: torch.dtype | None,
) -> list[str]:
    """Return why the native operators cannot serve these inputs; empty when they can."""
    reasons = _ext.tensor_reasons("rk_combine_fwd", (state,))
    if len(slopes) > _MAX_SLOPES:
        reasons.append(f"takes at most {_MAX_SLOPES} slopes; got {len(slopes)}")
    return reasons
