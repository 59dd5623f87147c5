"""The convolution and the norm's factor and offset in plain PyTorch: the definition, and the fallback anywhere."""

from __future__ import annotations

import torch
from torch import Tensor

from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._formula import activated, compute_dtype, convolved
from msf_kernels.memory_format import in_memory_format
from msf_kernels.partial_moments import map_moments


def conv3x3_reference(call: ConvCall) -> Tensor | tuple[Tensor, Tensor]:
    """Compute what `msf_kernels.conv3x3` documents; [N, C, H, W] -> [N, K, OH, OW]."""
    dtype = compute_dtype(call.x)
    bias = None if call.bias is None else call.bias.to(dtype)
    # Autocast would convolve in half precision, whatever dtype it is given.
    with torch.autocast(call.x.device.type, enabled=False):
        h = activated(call.x, call.skip, call.norm_scale, call.norm_shift, call.silu).to(dtype)
        out = convolved(h, call.weight.to(dtype), bias, call.stride, call.upsample)
        if call.residual is not None:
            out = out + call.residual.to(dtype)
    out = in_memory_format(out.to(call.x.dtype), torch.channels_last)
    return out if call.bundle is None else (out, map_moments(out, call.bundle, upsample=call.upsample))


def norm_affine_reference(
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
    """Compute what `msf_kernels.norm_affine` documents; [N, chunks, bundles, 3] -> two [N, C]."""
    dtype = moments.dtype
    sources = [moments] if skip_moments is None else [moments, skip_moments]
    parts = torch.cat([_by_bundle(source) for source in sources], dim=1)  # [N, bundles, 3]
    groups = parts.reshape(parts.shape[0], num_groups, parts.shape[1] // num_groups, 3)
    mean, variance = _combined(groups, dim=2)  # [N, num_groups, 1]
    rstd = (variance + eps).rsqrt()
    weight, bias = (vector.to(dtype).reshape(num_groups, -1) for vector in (weight, bias))
    norm_scale = (rstd * weight).flatten(1)  # [N, C]
    norm_shift = (bias - mean * rstd * weight).flatten(1)
    if scale is not None:
        factor = 1 + scale.to(dtype)
        norm_scale, norm_shift = norm_scale * factor, norm_shift * factor
    if shift is not None:
        norm_shift = norm_shift + shift.to(dtype)
    return norm_scale, norm_shift


def _by_bundle(moments: Tensor) -> Tensor:
    """Combine the chunks; [N, chunks, bundles, 3] -> [N, bundles, 3]."""
    count = moments[..., 0].sum(1)
    mean, variance = _combined(moments, dim=1)
    return torch.stack((count, mean.squeeze(1), variance.squeeze(1) * count), dim=2)


def _combined(parts: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance over an axis of parts; that axis stays, of length 1, and the moments' axis goes."""
    count, mean, deviation = parts.unbind(-1)
    total = count.sum(dim, keepdim=True).clamp(min=1)
    # About the middle one first: a mean that is large beside the deviation takes no accuracy from the sum.
    centre = mean.mean(dim, keepdim=True) if mean.shape[dim] else mean.sum(dim, keepdim=True)
    combined = centre + (count * (mean - centre)).sum(dim, keepdim=True) / total
    squares = (deviation + count * (mean - combined) ** 2).sum(dim, keepdim=True)
    return combined, squares / total
