"""The convolution in plain PyTorch: the definition, and the fallback anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._formula import compute_dtype, concatenated, convolved
from msf_kernels.memory_format import in_memory_format


def conv3x3_reference(call: ConvCall) -> Tensor:
    """Compute what `msf_kernels.conv3x3` documents; [N, C, H, W] -> [N, K, OH, OW]."""
    dtype = compute_dtype(call.x)
    bias = None if call.bias is None else call.bias.to(dtype)
    # Autocast would convolve in half precision, whatever dtype it is given.
    with torch.autocast(call.x.device.type, enabled=False):
        h = concatenated(call.x, call.skip).to(dtype)
        out = convolved(h, call.weight.to(dtype), bias, call.stride, call.upsample)
        if call.residual is not None:
            out = out + call.residual.to(dtype)
    return in_memory_format(out.to(call.x.dtype), torch.channels_last)
