"""The convolution as an operator of torch.library: schema, fake, CPU body, FLOPs.

`msf_triton::conv3x3_fwd` is what `torch.compile` and CUDA graphs see of a call: one boundary. It has no gradient:
networks are trained by the other backends.
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
from msf_kernels.conv3x3._reference import conv3x3_reference

_MAX_WEIGHT = 2**31


def _formula(*arguments: Any) -> Tensor:
    call = ConvCall(*arguments)
    by_phase = call.weight.permute(0, 1, 4, 2, 3)
    return conv3x3_reference(call._replace(weight=by_phase if call.upsample else by_phase[0]))


def _fake(*arguments: Any) -> Tensor:
    call = ConvCall(*arguments)
    return torch.empty(
        (call.x.shape[0], call.weight.shape[1], *call.out_size),
        dtype=call.x.dtype,
        device=call.x.device,
        memory_format=torch.channels_last,
    )


_conv = register(
    "conv3x3_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? skip, int stride, bool upsample) "
    "-> Tensor",
    kernel="msf_kernels.conv3x3._triton:launch_conv3x3",
    formula=_formula,
    fake=_fake,
)


def conv3x3_triton(call: ConvCall) -> Tensor:
    """Run the registered operator; [N, C, H, W] -> [N, K, OH, OW]."""
    out: Tensor = _conv(*call._replace(weight=packed(call.weight, call.upsample)))
    return out


def conv3x3_input_reasons(call: ConvCall) -> list[str]:
    """Return why the Triton kernel cannot serve these inputs; empty when it can."""
    reasons = tensor_reasons(call.tensors)
    if call.weight.numel() >= _MAX_WEIGHT:
        reasons.append(f"takes weights of less than {_MAX_WEIGHT} elements; got {call.weight.numel()}")
    return reasons


@register_flop_formula(torch.ops.msf_triton.conv3x3_fwd)
def _flops(*arguments: Any, **_outputs: Any) -> int:
    """2 operations per multiply-add; doubled maps take 4 phases of 4 taps per small pixel, not 4 of 9."""
    shapes: Any = ConvCall(*arguments)
    n, _, height, width = shapes.x
    pixels: int = n * -(-height // shapes.stride) * -(-width // shapes.stride)
    return 2 * pixels * int(math.prod(shapes.weight))
