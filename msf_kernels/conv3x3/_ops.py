"""The convolution and the norm's factor and offset as operators of torch.library: schemas, fakes, CPU bodies, FLOPs.

`msf_triton::conv3x3_fwd` and `msf_triton::norm_affine_fwd` are what `torch.compile` and CUDA graphs see of a call: one
boundary each. They have no gradient: networks are trained by the other backends.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from msf_kernels._triton.machine import tensor_reasons
from msf_kernels._triton.registration import register
from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._formula import packed
from msf_kernels.conv3x3._reference import conv3x3_reference, norm_affine_reference
from msf_kernels.partial_moments import empty_moments

MAX_BUNDLE = 32
_MAX_WEIGHT = 2**31


def _conv_formula(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = ConvCall(*arguments)
    by_phase = call.weight.permute(0, 1, 4, 2, 3)
    weight = by_phase if call.upsample else by_phase[0]
    result = conv3x3_reference(call._replace(weight=weight, bundle=call.bundle or None))
    return (result, empty_moments(result, 0)) if isinstance(result, Tensor) else result


def _conv_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = ConvCall(*arguments)
    out = torch.empty(
        (call.x.shape[0], call.weight.shape[1], *call.out_size),
        dtype=call.x.dtype,
        device=call.x.device,
        memory_format=torch.channels_last,
    )
    return out, empty_moments(out, call.bundle or 0, upsample=call.upsample)


_conv = register(
    "conv3x3_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? skip, Tensor? norm_scale, "
    "Tensor? norm_shift, int stride, bool upsample, bool silu, int bundle) -> (Tensor out, Tensor moments)",
    kernel="msf_kernels.conv3x3._triton:launch_conv3x3",
    formula=_conv_formula,
    fake=_conv_fake,
)


def conv3x3_triton(call: ConvCall) -> Tensor | tuple[Tensor, Tensor]:
    """Run the registered operator; [N, C, H, W] -> [N, K, OH, OW]."""
    out: Tensor
    out, moments = _conv(*call._replace(weight=packed(call.weight, call.upsample), bundle=call.bundle or 0))
    return out if call.bundle is None else (out, moments)


def conv3x3_input_reasons(call: ConvCall) -> list[str]:
    """Return why the Triton kernel cannot serve these inputs; empty when it can."""
    reasons = tensor_reasons(call.tensors)
    if call.weight.numel() >= _MAX_WEIGHT:
        reasons.append(f"takes weights of less than {_MAX_WEIGHT} elements; got {call.weight.numel()}")
    bundle = call.bundle
    if bundle is not None and (bundle & (bundle - 1) or bundle > MAX_BUNDLE):
        reasons.append(f"takes bundles that are powers of two up to {MAX_BUNDLE}; got {bundle}")
    return reasons


@register_flop_formula(torch.ops.msf_triton.conv3x3_fwd)
def _conv_flops(*arguments: Any, **_outputs: Any) -> int:
    """2 operations per multiply-add; doubled maps take 4 phases of 4 taps per small pixel, not 4 of 9."""
    shapes: Any = ConvCall(*arguments)
    n, _, height, width = shapes.x
    pixels: int = n * -(-height // shapes.stride) * -(-width // shapes.stride)
    return 2 * pixels * int(math.prod(shapes.weight))


def _affine_formula(
    moments: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    skip_moments: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return norm_affine_reference(
        moments, num_groups, weight, bias, skip_moments=skip_moments, scale=scale, shift=shift, eps=eps
    )


def _affine_fake(moments: Tensor, num_groups: int, weight: Tensor, *_rest: Any) -> tuple[Tensor, Tensor]:
    norm_scale = moments.new_empty((moments.shape[0], weight.shape[0]))
    return norm_scale, torch.empty_like(norm_scale)


_affine = register(
    "norm_affine_fwd(Tensor moments, int num_groups, Tensor weight, Tensor bias, Tensor? skip_moments, Tensor? scale, "
    "Tensor? shift, float eps) -> (Tensor norm_scale, Tensor norm_shift)",
    kernel="msf_kernels.conv3x3._triton:launch_norm_affine",
    formula=_affine_formula,
    fake=_affine_fake,
)


def norm_affine_triton(
    moments: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    skip_moments: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Run the registered operator; [N, chunks, bundles, 3] -> two [N, C]."""
    skip_moments = None if skip_moments is None else skip_moments.contiguous()
    norm_scale: Tensor
    norm_shift: Tensor
    norm_scale, norm_shift = _affine(moments.contiguous(), num_groups, weight, bias, skip_moments, scale, shift, eps)
    return norm_scale, norm_shift


def norm_affine_input_reasons(
    moments: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    skip_moments: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
) -> list[str]:
    """Return why the Triton kernel cannot serve these inputs; empty when it can."""
    tensors = (moments, weight, bias, skip_moments, scale, shift)
    return tensor_reasons([tensor for tensor in tensors if tensor is not None])
