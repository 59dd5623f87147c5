"""The projections of the attention block as an operator of torch.library, between the norm and the attention.

`msf_triton::attention_block_projection` is a matrix product over the pixels of a map, with bias and residual in its
epilogue. It has no gradient: networks are trained by the other backends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from msf_kernels._triton.machine import tensor_reasons
from msf_kernels._triton.registration import register
from msf_kernels.attention_block._call import BlockCall
from msf_kernels.attention_block._reference import projected
from msf_kernels.group_norm_silu import group_norm_silu
from msf_kernels.spatial_attention import spatial_attention


def _fake(x: Tensor, weight: Tensor, *_rest: Any) -> Tensor:
    n, _, height, width = x.shape
    shape = (n, weight.shape[0], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_project = register(
    "attention_block_projection(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor",
    kernel="msf_kernels.attention_block._triton:launch_attention_block_projection",
    formula=projected,
    fake=_fake,
)


def attention_block_triton(call: BlockCall) -> Tensor:
    """Run the registered operators, with the norm and the attention that serve best; [N, C, H, W] -> [N, C, H, W]."""
    x = call.x
    n, channels, height, width = x.shape
    h = group_norm_silu(x, call.num_groups, call.norm_weight, call.norm_bias, eps=call.eps, silu=False)
    qkv = _project(h, call.qkv_weight, call.qkv_bias, None).permute(0, 2, 3, 1).flatten(1, 2)
    mixed = spatial_attention(qkv, call.num_heads, order=call.order)
    mixed = mixed.reshape(n, height, width, channels).permute(0, 3, 1, 2)
    out: Tensor = _project(mixed, call.proj_weight, call.proj_bias, x)
    return out


def triton_input_reasons(call: BlockCall) -> list[str]:
    """Return why the Triton kernels cannot serve these inputs; empty when they can."""
    return tensor_reasons(call.tensors)


@register_flop_formula(torch.ops.msf_triton.attention_block_projection)
def _flops(x_shape: Sequence[int], weight_shape: Sequence[int], *_rest: Any, **_outputs: Any) -> int:
    n, _, height, width = x_shape
    return 2 * n * height * width * math.prod(weight_shape)
