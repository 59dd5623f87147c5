"""The convolution in the native extension, on the CPU: Winograd's forms, or direct where none fits.

In float32; and in bfloat16, where the processor has dot products of its pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from msf_kernels import _ext
from msf_kernels.conv3x3._autograd import differentiable
from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._forms import TAPS, TILE_INPUTS, ConvSizes, Form, choose_form
from msf_kernels.conv3x3._formula import concatenated, summed_weight

DTYPES = (torch.float32, torch.bfloat16)
PANEL = 32  # output channels that are next to each other in a transformed weight


def _weight_fake(weight: Tensor, form: int) -> Tensor:
    phases = 4 if weight.dim() == 5 else 1
    n_out, n_in, side, _ = weight.shape[-4:]
    frequencies = side**2 if form == Form.DIRECT else TILE_INPUTS[Form(form)] ** 2
    return weight.new_empty((phases, -(-n_out // PANEL), frequencies, n_in, PANEL))


def _fwd_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out_channels: int,
    form: int,
    stride: int,
) -> Tensor:
    n, _, height, width = x.shape
    factor = 2 if weight.shape[0] == 4 else 1  # phases of a doubled map
    shape = (n, out_channels, factor * -(-height // stride), factor * -(-width // stride))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fwd_flops(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias_shape: Any,
    _residual_shape: Any,
    out_channels: int,
    form: int,
    stride: int,
    **_outputs: Any,
) -> int:
    """2 operations per multiply-add of the plain sum, as for the other backends; what Winograd saves is speed."""
    n, channels, height, width = x_shape
    phases, _, frequencies = weight_shape[:3]
    taps = frequencies if form == Form.DIRECT else TAPS[Form(form)]
    return 2 * n * -(-height // stride) * -(-width // stride) * phases * taps * channels * out_channels


_transform = _ext.operator("convolution_weight", _weight_fake)
convolve = _ext.operator("convolution_fwd", _fwd_fake, _fwd_flops)


def transform(weight: Tensor, form: Form, dtype: torch.dtype) -> Tensor:
    """Return the weight as `convolve` reads it for maps of a dtype; rounded once.

    [phases, panels, frequencies, inner, 32] in float32; in bfloat16 pairs of inner channels are next to each other,
    [phases, panels, frequencies, pairs, 32, 2], with a zero beyond the last.
    """
    values: Tensor = _transform(weight.to(torch.float32), form)
    if dtype == torch.float32:
        return values
    even = torch.nn.functional.pad(values, (0, 0, 0, values.shape[3] % 2)).to(dtype)
    pairs = even.reshape(*even.shape[:3], -1, 2, PANEL)
    return pairs.transpose(-1, -2).contiguous()


def _convolved(
    h: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, upsample: bool
) -> Tensor:
    """Transform the weight and convolve."""
    form = choose_form(ConvSizes(3, h.shape[1], weight.shape[-4], h.shape[2], h.shape[3], stride, upsample, h.dtype))
    if upsample and weight.dim() == 4:
        weight = summed_weight(weight)
    out: Tensor = convolve(h, transform(weight, form, h.dtype), bias, residual, weight.shape[-4], form, stride)
    return out


_differentiable = differentiable(_convolved)


def conv3x3_native(call: ConvCall) -> Tensor:
    """Run the registered operators between the steps that they do not fuse; [N, C, H, W] -> [N, K, OH, OW]."""
    h = concatenated(call.x, call.skip)
    bias = None if call.bias is None else call.bias.to(h.dtype)
    return _differentiable(h, call.weight, bias, call.residual, call.stride, call.upsample)


def native_input_reasons(call: ConvCall) -> list[str]:
    """Return why the native operator cannot serve these inputs; empty when it can."""
    return map_reasons(call.x.device, call.x.dtype)


def map_reasons(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return why the native operator has no kernel for such maps; only when `machine_reasons()` is empty."""
    reasons = [] if device.type == "cpu" else [f"has no kernel for tensors on {device.type}"]
    if dtype not in DTYPES:
        reasons.append(f"convolves float32 and bfloat16; got {dtype}")
    elif dtype == torch.bfloat16 and not _ext.has_pair_dots():
        reasons.append("has no dot products of pairs of bfloat16 on this processor (AVX-512 BF16)")
    return reasons
