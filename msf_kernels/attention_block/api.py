"""The public attention block: what it computes, which inputs it takes, which implementation serves a call."""

from __future__ import annotations

from torch import Tensor

from msf_kernels._derivatives import Derivatives
from msf_kernels._triton.machine import triton_backend
from msf_kernels.attention_block._call import BlockCall
from msf_kernels.attention_block._choice import auto_order
from msf_kernels.attention_block._measured import TABLE
from msf_kernels.attention_block._ops import attention_block_triton, triton_input_reasons
from msf_kernels.attention_block._reference import attention_block_composed, attention_block_reference
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import (
    require_int,
    require_order,
    require_positive,
    require_same_device,
    require_same_dtype,
    require_shape,
    require_tensor,
)
from msf_kernels.shapes import FeatureMap

_operator = Operator(
    "attention_block",
    [
        triton_backend(attention_block_triton, triton_input_reasons),
        Backend("composed", attention_block_composed, derivatives=Derivatives.ALL),
        Backend("reference", attention_block_reference, derivatives=Derivatives.ALL),
    ],
    auto_order,
    TABLE,
    record=BlockCall,
)


def attention_block(
    x: FeatureMap,
    norm_weight: Tensor,
    norm_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    num_groups: int,
    num_heads: int,
    *,
    order: str = "legacy",
    eps: float = 1e-5,
    backend: str = "auto",
) -> FeatureMap:
    """Add multi-head self-attention over the pixels of a map to the map: norm, projections, attention, residual.

        h = group_norm(x);   qkv = qkv_weight h + qkv_bias;   out = x + proj_weight attention(qkv) + proj_bias

    Args:
        x: Feature map; [N, C, H, W], T = H W tokens; float16, bfloat16, float32 or float64; any strides, channels-last
            is fastest. N, H and W may be zero.
        norm_weight: Factor per channel; [C]; any floating dtype.
        norm_bias: Offset per channel; [C]; any floating dtype.
        qkv_weight: [3C, C]; dtype of `x`.
        qkv_bias: [3C]; any floating dtype; None: no offset.
        proj_weight: [C, C]; dtype of `x`.
        proj_bias: [C]; any floating dtype; None: no offset.
        num_groups: Number of groups of the norm; divides C.
        num_heads: Number of heads; divides C.
        order: How the 3C projections are packed, `"legacy"` or `"new"`, as `spatial_attention` says.
        eps: Added to the variance; finite, > 0.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced. `triton`
            adds biases and residual in the projections; `composed` runs the steps one by one. The norm and the
            attention are `group_norm_silu`'s and `spatial_attention`'s own choice in both.

    Returns:
        [N, C, H, W] in the dtype and on the device of `x`, channels-last.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Axes, sizes, devices that do not fit; C not divisible by `num_groups` or `num_heads`; unknown
            `order`.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Statistics, softmax and sums in float32 (float64 when `x` is float64); the normalised map, the projections and
        the attention's output are rounded to the dtype of `x`, as operands of matrix units are. `composed` also rounds
        before the residual is added. An item's result does not depend on the other items of the batch; whether its last
        bits do is a matter of the attention's backend, and for `composed` and `reference` of PyTorch's products.
        `triton` has no gradient, the others have derivatives of any mode and order.

    Source:
        Dhariwal and Nichol, arXiv 2105.05233, section 3 (attention blocks of the network).
    """
    require_tensor("x", x, "[N, C, H, W]")
    channels = x.shape[1]
    require_int("num_groups", num_groups, minimum=1)
    require_int("num_heads", num_heads, minimum=1)
    for name, number in (("num_groups", num_groups), ("num_heads", num_heads)):
        if channels == 0 or channels % number:
            raise ValueError(f"{name} must divide the channels of x, {channels}; got {number}")
    for name, vector, size in (
        ("norm_weight", norm_weight, channels),
        ("norm_bias", norm_bias, channels),
        ("qkv_bias", qkv_bias, 3 * channels),
        ("proj_bias", proj_bias, channels),
    ):
        if vector is None and name.startswith("norm"):
            raise TypeError(f"{name} must be a tensor [C]; got NoneType")
        if vector is not None:
            axes = "[3C]" if name == "qkv_bias" else "[C]"
            require_tensor(name, vector, axes)
            require_shape(name, vector, axes, (size,))
            require_same_device(name, vector, "x", x)
    for name, weight, axes, size in (
        ("qkv_weight", qkv_weight, "[3C, C]", 3 * channels),
        ("proj_weight", proj_weight, "[C, C]", channels),
    ):
        require_tensor(name, weight, axes)
        require_shape(name, weight, axes, (size, channels))
        require_same_dtype(name, weight, "x", x)
        require_same_device(name, weight, "x", x)
    require_order(order)
    require_positive("eps", eps)
    result: Tensor = _operator(
        backend,
        x,
        norm_weight,
        norm_bias,
        qkv_weight,
        qkv_bias,
        proj_weight,
        proj_bias,
        num_groups,
        num_heads,
        order=order,
        eps=eps,
    )
    return result
