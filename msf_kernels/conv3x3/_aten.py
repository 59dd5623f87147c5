"""The convolution by PyTorch's own operators (cuDNN on a GPU, oneDNN on a CPU), in the dtype of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.conv3x3._formula import activated, convolved
from msf_kernels.memory_format import in_memory_format
from msf_kernels.partial_moments import map_moments


def conv3x3_aten(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    stride: int = 1,
    upsample: bool = False,
    skip: Tensor | None = None,
    norm_scale: Tensor | None = None,
    norm_shift: Tensor | None = None,
    silu: bool = True,
    bundle: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run PyTorch's convolution between the steps that it does not fuse; [N, C, H, W] -> [N, K, OH, OW]."""
    with torch.autocast(x.device.type, enabled=False):
        h = in_memory_format(activated(x, skip, norm_scale, norm_shift, silu), torch.channels_last)
        out = convolved(h, weight, None if bias is None else bias.to(x.dtype), stride, upsample)
        if residual is not None:
            out = out + residual
    out = in_memory_format(out, torch.channels_last)
    return out if bundle is None else (out, map_moments(out, bundle, upsample=upsample))
