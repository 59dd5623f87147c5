"""Group norm, scale and shift, SiLU in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels._derivatives import any_transformed, once_then_composed
from msf_kernels.group_norm_silu._call import NormCall
from msf_kernels.memory_format import output_memory_format


def _group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    silu: bool,
    *,
    is_elementary: bool = False,
) -> Tensor:
    is_elementary = is_elementary or any_transformed((x, weight, bias, skip, add, scale, shift))
    memory_format = output_memory_format(x)
    compute_dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = weight.to(compute_dtype), bias.to(compute_dtype)

    h = x if skip is None else torch.cat([x, skip], dim=1)  # [N, C, H, W]
    offset = None if add is None else add.to(compute_dtype)  # [N or 1, C]
    if memory_format == torch.channels_last and h.numel():
        # PyTorch's channels-last CPU kernel takes the variance as E[x^2] - E[x]^2: at mean/std = 1000 its fp32 error
        # is of order 1, against 1e-4 for its contiguous kernel. The norm does not see a shift of a whole group, so
        # the group is centred first; for the same reason the shift needs no gradient.
        centre = _group_mean(h.detach(), num_groups, offset, compute_dtype)  # [N, C]
        offset = -centre if offset is None else offset - centre
    h = h.to(compute_dtype) if offset is None else h + offset[:, :, None, None]  # the sum promotes half precision

    if h.numel() and is_elementary:
        y = _normalised(h, num_groups, eps) * weight[:, None, None] + bias[:, None, None]
    elif h.numel():
        # Not functional.group_norm, which refuses groups of one value.
        y = torch.group_norm(h, num_groups, weight, bias, eps)
    else:
        # The gradient of the empty norm must be zero, and that of PyTorch's kernel is NaN when a pixel axis is empty.
        y = h * weight[:, None, None] + bias[:, None, None]
    if scale is not None:
        factor = 1 + scale.to(compute_dtype)[:, :, None, None]
        y = y * factor if shift is None else torch.addcmul(shift.to(compute_dtype)[:, :, None, None], y, factor)
    elif shift is not None:
        y = y + shift.to(compute_dtype)[:, :, None, None]
    if silu:
        y = y * torch.sigmoid(y) if is_elementary else functional.silu(y)
    return y.to(x.dtype).contiguous(memory_format=memory_format)


def group_norm_silu_reference(call: NormCall) -> Tensor:
    """Compute what `msf_kernels.group_norm_silu` documents; [N, C, H, W] -> [N, C, H, W]."""
    return _composed(*call)


def group_norm_silu_elementary(*call: Any) -> Tensor:
    """Compute the same from elementary operators.

    PyTorch's own norm and SiLU have no forward mode in their backward passes, and the second derivative of that norm
    comes out in a wrong shape under vmap.
    """
    return _group_norm_silu(*call, is_elementary=True)


_composed = once_then_composed(_group_norm_silu, group_norm_silu_elementary)


def _normalised(h: Tensor, num_groups: int, eps: float) -> Tensor:
    """Return (h - mean) / sqrt(var + eps) of each group; [N, C, H, W]."""
    grouped = h.reshape(h.shape[0], num_groups, -1)
    centred = grouped - grouped.mean(2, keepdim=True)
    variance = (centred * centred).mean(2, keepdim=True)
    return (centred * (variance + eps).rsqrt()).reshape(h.shape)


def group_statistics(
    x: Tensor, num_groups: int, *, skip: Tensor | None, add: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sqrt(var + eps) of each group; [N, num_groups] each; zero where a group is empty."""
    grouped = _grouped(x, num_groups, skip, add)  # [N, G, M]
    if grouped.numel() == 0:
        zeros = grouped.new_zeros(grouped.shape[:2])
        return zeros, zeros.clone()
    var, mean = torch.var_mean(grouped, dim=2, correction=0)
    return mean, (var + eps).rsqrt()


def group_norm_silu_bwd_formula(
    grad_out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    x: Tensor,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    skip: Tensor | None,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients by the closed form, in the compute dtype.

    h = [x ; skip] + add: [N, C, H, W]; weight, bias: [C]; add, scale, shift: [N, C], not yet summed over items.
    """
    n, channels, height, width = grad_out.shape
    compute_dtype = mean.dtype
    weight, bias = weight.to(compute_dtype)[None, :], bias.to(compute_dtype)[None, :]
    factor = 1 if scale is None else 1 + scale.to(compute_dtype)
    offset = 0 if shift is None else shift.to(compute_dtype)

    grouped = _grouped(x, num_groups, skip, add)
    xhat = ((grouped - mean[:, :, None]) * rstd[:, :, None]).view(n, channels, height, width)
    grad_y = grad_out.to(compute_dtype)
    if silu:
        y = xhat * (weight * factor)[:, :, None, None] + (bias * factor + offset)[:, :, None, None]
        sigmoid = torch.sigmoid(y)
        grad_y = grad_y * sigmoid * (1 + y * (1 - sigmoid))
    sum_grad = grad_y.sum((2, 3))  # [N, C]
    sum_grad_xhat = (grad_y * xhat).sum((2, 3))  # [N, C]

    grad_xhat = (grad_y * (weight * factor)[:, :, None, None]).reshape(grouped.shape)
    xhat = xhat.reshape(grouped.shape)
    grad_h = grad_xhat - grad_xhat.mean(2, keepdim=True) - xhat * (grad_xhat * xhat).mean(2, keepdim=True)
    grad_h = (grad_h * rstd[:, :, None]).view(n, channels, height, width)
    return (
        grad_h,
        (factor * sum_grad_xhat).sum(0),
        (factor * sum_grad).sum(0),
        grad_h.sum((2, 3)),
        weight * sum_grad_xhat + bias * sum_grad,
        sum_grad,
    )


def _grouped(x: Tensor, num_groups: int, skip: Tensor | None, add: Tensor | None) -> Tensor:
    """Return [x ; skip] + add in the compute dtype, one row per group; [N, num_groups, M]."""
    h = x if skip is None else torch.cat([x, skip], dim=1)
    h = h.double() if x.dtype == torch.float64 else h.float()
    if add is not None:
        h = h + add.to(h.dtype)[:, :, None, None]
    n, channels, height, width = h.shape
    return h.reshape(n, num_groups, channels // num_groups * height * width)


def _group_mean(h: Tensor, num_groups: int, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return each group's mean of h + offset, repeated over the group's channels; [N, C]."""
    n, channels = h.shape[:2]
    per_channel = h.mean(dim=(2, 3), dtype=dtype)
    if offset is not None:
        per_channel = per_channel + offset.detach()
    per_group = per_channel.view(n, num_groups, channels // num_groups).mean(dim=2, keepdim=True)
    return per_group.expand(n, num_groups, channels // num_groups).reshape(n, channels)
