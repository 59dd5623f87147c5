"""The attention block in plain PyTorch: the definition, and the same steps through the operators that serve best."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels.attention_block._call import BlockCall
from msf_kernels.group_norm_silu import group_norm_silu
from msf_kernels.memory_format import in_memory_format
from msf_kernels.spatial_attention import spatial_attention


def attention_block_reference(call: BlockCall) -> Tensor:
    """Compute what `msf_kernels.attention_block` documents; [N, C, H, W] -> [N, C, H, W]."""
    with torch.autocast(call.x.device.type, enabled=False):
        qkv = normalised_qkv(
            call.x, call.norm_weight, call.norm_bias, call.qkv_weight, call.qkv_bias, call.num_groups, call.eps
        )
        mixed = spatial_attention(qkv, call.num_heads, order=call.order, backend="reference")
        return projected_sum(mixed, call.proj_weight, call.proj_bias, call.x)


def attention_block_composed(call: BlockCall) -> Tensor:
    """Run the norm, the attention (each on its own choice of backend) and PyTorch's matrix products one by one."""
    x = call.x
    qkv_bias, proj_bias = (None if bias is None else bias.to(x.dtype) for bias in (call.qkv_bias, call.proj_bias))
    with torch.autocast(x.device.type, enabled=False):
        h = group_norm_silu(x, call.num_groups, call.norm_weight, call.norm_bias, eps=call.eps, silu=False)
        qkv = functional.linear(_tokens(h), call.qkv_weight, qkv_bias)
        mixed = spatial_attention(qkv, call.num_heads, order=call.order)
        h = functional.linear(mixed, call.proj_weight, proj_bias)
        return _feature_map(_tokens(x) + h, x)


def normalised_qkv(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    num_groups: int,
    eps: float,
) -> Tensor:
    """Return the packed projections of the normalised map; [N, C, H, W] -> [N, T, 3C]."""
    h = group_norm_silu(x, num_groups, norm_weight, norm_bias, eps=eps, silu=False, backend="reference")
    return _projected(_tokens(h), qkv_weight, qkv_bias).to(x.dtype).contiguous()


def projected_sum(mixed: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Return x plus the projection of the attention's output; [N, T, C] and [N, C, H, W] -> [N, C, H, W]."""
    total = _tokens(x) + _projected(mixed, weight, bias)  # in the wider dtype
    return _feature_map(total.to(x.dtype), x)


def _projected(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply in float32, or float64 for that; [N, T, C] -> [N, T, K]."""
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    return functional.linear(tokens.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)  # [N, C, H, W] -> [N, T, C]


def _feature_map(tokens: Tensor, x: Tensor) -> Tensor:
    """Return tokens as a channels-last map of the size of x; [N, T, C] -> [N, C, H, W]."""
    n, channels, height, width = x.shape
    feature_map = tokens.reshape(n, height, width, channels).permute(0, 3, 1, 2)
    return in_memory_format(feature_map, torch.channels_last)
