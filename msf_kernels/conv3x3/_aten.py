"""The convolution by PyTorch's own operators (cuDNN on a GPU, oneDNN on a CPU), in the dtype of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._formula import activated, convolved
from msf_kernels.memory_format import in_memory_format
from msf_kernels.partial_moments import map_moments


def conv3x3_aten(call: ConvCall) -> Tensor | tuple[Tensor, Tensor]:
    """Run PyTorch's convolution between the steps that it does not fuse; [N, C, H, W] -> [N, K, OH, OW]."""
    bias = None if call.bias is None else call.bias.to(call.x.dtype)
    with torch.autocast(call.x.device.type, enabled=False):
        h = in_memory_format(
            activated(call.x, call.skip, call.norm_scale, call.norm_shift, call.silu), torch.channels_last
        )
        out = convolved(h, call.weight, bias, call.stride, call.upsample)
        if call.residual is not None:
            out = out + call.residual
    out = in_memory_format(out, torch.channels_last)
    return out if call.bundle is None else (out, map_moments(out, call.bundle, upsample=call.upsample))
