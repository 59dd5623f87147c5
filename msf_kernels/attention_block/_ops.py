"""The two fused halves of the attention block as operators of torch.library, around the attention between them.

`msf_triton::attention_block_qkv` is the norm and the first projection, `msf_triton::attention_block_out` the second one
and the residual. They have no gradient: networks are trained by the other backends.
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
from msf_kernels.attention_block._reference import normalised_qkv, projected_sum
from msf_kernels.spatial_attention import spatial_attention


def _qkv_fake(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, qkv_weight: Tensor, *_rest: Any) -> Tensor:
    n, _, height, width = x.shape
    return x.new_empty((n, height * width, qkv_weight.shape[0]))


def _out_fake(mixed: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_qkv = register(
    "attention_block_qkv(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor qkv_weight, Tensor? qkv_bias, "
    "int num_groups, float eps) -> Tensor",
    kernel="msf_kernels.attention_block._triton:launch_attention_block_qkv",
    formula=normalised_qkv,
    fake=_qkv_fake,
)
_out = register(
    "attention_block_out(Tensor mixed, Tensor weight, Tensor? bias, Tensor x) -> Tensor",
    kernel="msf_kernels.attention_block._triton:launch_attention_block_out",
    formula=projected_sum,
    fake=_out_fake,
)


def attention_block_triton(call: BlockCall) -> Tensor:
    """Run the registered operators, and between them the attention that serves best; [N, C, H, W] -> [N, C, H, W]."""
    qkv = _qkv(call.x, call.norm_weight, call.norm_bias, call.qkv_weight, call.qkv_bias, call.num_groups, call.eps)
    mixed = spatial_attention(qkv, call.num_heads, order=call.order)
    out: Tensor = _out(mixed, call.proj_weight, call.proj_bias, call.x)
    return out


def triton_input_reasons(call: BlockCall) -> list[str]:
    """Return why the Triton kernels cannot serve these inputs; empty when they can."""
    return tensor_reasons(call.tensors)


@register_flop_formula(torch.ops.msf_triton.attention_block_qkv)
def _qkv_flops(
    x_shape: Sequence[int], norm_shape: Any, bias_shape: Any, weight_shape: Sequence[int], *_rest: Any, **_outputs: Any
) -> int:
    n, _, height, width = x_shape
    return 2 * n * height * width * math.prod(weight_shape)


@register_flop_formula(torch.ops.msf_triton.attention_block_out)
def _out_flops(mixed_shape: Sequence[int], weight_shape: Sequence[int], *_rest: Any, **_outputs: Any) -> int:
    n, n_tokens, _ = mixed_shape
    return 2 * n * n_tokens * math.prod(weight_shape)
