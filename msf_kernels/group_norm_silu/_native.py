"""The group norm in the native extension: its operators, their gradients, and what they do not take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels.group_norm_silu._allocation import empty_outputs, fake_group_norm_silu_bwd
from msf_kernels.group_norm_silu._autograd import differentiable
from msf_kernels.group_norm_silu._call import NormCall


def _fwd_fake(x: Tensor, num_groups: int, weight: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the operator allocates: unlike other families, it saves the statistics in float64."""
    out, mean, rstd = empty_outputs(x, num_groups, weight)
    return out, mean.double(), rstd.double()


group_norm_silu_native = differentiable(
    fwd=_ext.operator("group_norm_silu_fwd", _fwd_fake),
    bwd=_ext.operator("group_norm_silu_bwd", fake_group_norm_silu_bwd),
)


def native_reasons(call: NormCall) -> list[str]:
    """Return why the native operators cannot serve these inputs; empty when they can."""
    reasons = _ext.tensor_reasons("group_norm_silu_fwd", (call.x,))
    if call.x.dtype == torch.float64:
        reasons.append("computes in float32; float64 is left to the reference")
    return reasons
