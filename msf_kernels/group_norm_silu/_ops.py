"""The group norm as operators of torch.library: schemas, fakes, CPU bodies, autograd, FLOP counts.

`msf_triton::group_norm_silu_fwd` and `_bwd` are what `torch.compile`, autograd and CUDA graphs see of a call: one
boundary per direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from msf_kernels._triton.machine import tensor_reasons
from msf_kernels._triton.registration import register
from msf_kernels.group_norm_silu._allocation import (
    empty_gradients,
    fake_group_norm_silu_bwd,
    fake_group_norm_silu_fwd,
)
from msf_kernels.group_norm_silu._autograd import differentiable
from msf_kernels.group_norm_silu._call import NormCall
from msf_kernels.group_norm_silu._reference import (
    group_norm_silu_bwd_formula,
    group_norm_silu_reference,
    group_statistics,
)

# A tile holds a whole group of channels for at least one pixel, in registers.
MAX_CHANNELS_PER_GROUP = 4096

# Floating-point operations per value: sum and squared deviation (4), affine (2), SiLU (4: exp, +, /, *).
_FLOPS_NORM, _FLOPS_SILU = 6, 4
# Backward: xhat (2), its two sums (4), dh (5); SiLU again with its derivative and y (10).
_FLOPS_NORM_BWD, _FLOPS_SILU_BWD = 11, 10


def _fwd_formula(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = NormCall(*arguments)
    mean, rstd = group_statistics(call.x, call.num_groups, skip=call.skip, add=call.add, eps=call.eps)
    return group_norm_silu_reference(call), mean, rstd


def _bwd_formula(
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, ...]:
    grads = empty_gradients(x, weight, bias, skip, add, scale, shift)
    if grad_out.numel() == 0:
        return tuple(grad.zero_() for grad in grads)
    grad_h, grad_weight, grad_bias, *grad_rows = group_norm_silu_bwd_formula(
        grad_out, mean, rstd, x, num_groups, weight, bias, skip=skip, add=add, scale=scale, shift=shift, silu=silu
    )
    values = (grad_h[:, : x.shape[1]], grad_weight, grad_bias, grad_h[:, x.shape[1] :], *grad_rows)
    for grad, value in zip(grads, values, strict=True):
        if grad.numel():
            grad.copy_(value if grad.shape == value.shape else value.sum(0, keepdim=True))
    return grads


_fwd = register(
    "group_norm_silu_fwd",
    kernel="msf_kernels.group_norm_silu._triton:launch_group_norm_silu_fwd",
    formula=_fwd_formula,
    fake=fake_group_norm_silu_fwd,
)
_bwd = register(
    "group_norm_silu_bwd",
    kernel="msf_kernels.group_norm_silu._triton:launch_group_norm_silu_bwd",
    formula=_bwd_formula,
    fake=fake_group_norm_silu_bwd,
)


group_norm_silu_triton = differentiable(_fwd, _bwd)


@register_flop_formula(torch.ops.msf_triton.group_norm_silu_fwd)
def _fwd_flops(
    x_shape: Sequence[int], num_groups: int, weight_shape: Sequence[int], *rest: Any, **_outputs: Any
) -> int:
    n, _, height, width = x_shape
    is_silu = rest[-1]
    return n * weight_shape[0] * height * width * (_FLOPS_NORM + (_FLOPS_SILU if is_silu else 0))


@register_flop_formula(torch.ops.msf_triton.group_norm_silu_bwd)
def _bwd_flops(grad_out_shape: Sequence[int], *rest: Any, **_outputs: Any) -> int:
    is_silu = rest[-1]
    return math.prod(grad_out_shape) * (_FLOPS_NORM_BWD + (_FLOPS_SILU_BWD if is_silu else 0))


def triton_input_reasons(call: NormCall) -> list[str]:
    """Return why the Triton kernels cannot serve these inputs; empty when they can."""
    reasons = tensor_reasons(call.tensors)
    channels_per_group = call.weight.shape[0] // call.num_groups
    if channels_per_group > MAX_CHANNELS_PER_GROUP:
        reasons.append(f"takes up to {MAX_CHANNELS_PER_GROUP} channels per group; got {channels_per_group}")
    return reasons
