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
    x = call.x
    n, channels, height, width = x.shape
    with torch.autocast(x.device.type, enabled=False):
        h = group_norm_silu(
            x, call.num_groups, call.norm_weight, call.norm_bias, eps=call.eps, silu=False, backend="reference"
        )
        qkv = projected(h, call.qkv_weight, call.qkv_bias, None).permute(0, 2, 3, 1).flatten(1, 2)
        mixed = spatial_attention(qkv, call.num_heads, order=call.order, backend="reference")
        mixed = mixed.reshape(n, height, width, channels).permute(0, 3, 1, 2)
        return projected(mixed, call.proj_weight, call.proj_bias, x)


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


def projected(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Return weight x + bias + residual of every pixel, one rounding at the end; [N, C, H, W] -> [N, K, H, W]."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    tokens = functional.linear(_tokens(x).to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    if residual is not None:
        tokens = _tokens(residual) + tokens  # in the wider dtype
    return _feature_map(tokens.to(x.dtype), x)


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(1, 2)  # [N, C, H, W] -> [N, T, C]


def _feature_map(tokens: Tensor, x: Tensor) -> Tensor:
    """Return tokens as a channels-last map of the height and width of x; [N, T, K] -> [N, K, H, W]."""
    n, _, height, width = x.shape
    feature_map = tokens.reshape(n, height, width, tokens.shape[2]).permute(0, 3, 1, 2)
    return in_memory_format(feature_map, torch.channels_last)
