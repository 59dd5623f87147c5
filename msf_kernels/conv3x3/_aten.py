"""The convolution by PyTorch's own operators (cuDNN on a GPU, oneDNN on a CPU), in the dtype of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._formula import concatenated, convolved
from msf_kernels.memory_format import in_memory_format


def conv3x3_aten(call: ConvCall) -> Tensor:
    """Run PyTorch's convolution between the steps that it does not fuse; [N, C, H, W] -> [N, K, OH, OW]."""
    bias = None if call.bias is None else call.bias.to(call.x.dtype)
    with torch.autocast(call.x.device.type, enabled=False):
        h = in_memory_format(concatenated(call.x, call.skip), torch.channels_last)
        out = convolved(h, call.weight, bias, call.stride, call.upsample)
        if call.residual is not None:
            out = out + call.residual
    return in_memory_format(out, torch.channels_last)
