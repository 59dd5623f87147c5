"""Group norm, scale and shift, SiLU in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def group_norm_silu_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
) -> Tensor:
    """Compute what `msf_kernels.group_norm_silu` documents; [N, C, H, W] -> [N, C, H, W]."""
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    compute_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = weight.to(compute_dtype), bias.to(compute_dtype)

    h = x if skip is None else torch.cat([x, skip], dim=1)  # [N, C, H, W]
    offset = None if add is None else add.to(compute_dtype)  # [N or 1, C]
    if channels_last and h.numel():
        # PyTorch's channels-last CPU kernel takes the variance as E[x^2] - E[x]^2: at mean/std = 1000 its fp32 error
        # is of order 1, against 1e-4 for its contiguous kernel. The norm does not see a shift of a whole group, so
        # the group is centred first; for the same reason the shift needs no gradient.
        centre = _group_mean(h.detach(), num_groups, offset, compute_dtype)  # [N, C]
        offset = -centre if offset is None else offset - centre
    h = h.to(compute_dtype) if offset is None else h + offset[:, :, None, None]  # the sum promotes half precision

    if h.numel():
        y = functional.group_norm(h, num_groups, weight, bias, eps)
    else:
        # The gradient of the empty norm must be zero, and that of PyTorch's kernel is NaN when a pixel axis is empty.
        y = h * weight[:, None, None] + bias[:, None, None]
    if scale is not None:
        factor = 1 + scale.to(compute_dtype)[:, :, None, None]
        y = y * factor if shift is None else torch.addcmul(shift.to(compute_dtype)[:, :, None, None], y, factor)
    elif shift is not None:
        y = y + shift.to(compute_dtype)[:, :, None, None]
    if silu:
        y = functional.silu(y)
    return y.to(x.dtype).contiguous(memory_format=memory_format)


def _group_mean(h: Tensor, num_groups: int, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return each group's mean of h + offset, repeated over the group's channels; [N, C]."""
    n, channels = h.shape[:2]
    per_channel = h.mean(dim=(2, 3), dtype=dtype)
    if offset is not None:
        per_channel = per_channel + offset.detach()
    per_group = per_channel.view(n, num_groups, channels // num_groups).mean(dim=2, keepdim=True)
    return per_group.expand(n, num_groups, channels // num_groups).reshape(n, channels)
