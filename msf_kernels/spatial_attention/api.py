"""The public attention: what it computes, which inputs it takes, which implementation serves a call."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from msf_kernels._derivatives import Derivatives
from msf_kernels._ext import native_backend
from msf_kernels._triton.machine import triton_backend
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import require_int, require_order, require_tensor
from msf_kernels.spatial_attention._choice import auto_order
from msf_kernels.spatial_attention._libraries import (
    flash_attn_input_reasons,
    flash_attn_machine_reasons,
    spatial_attention_flash_attn,
    spatial_attention_sdpa,
    spatial_attention_xformers,
    xformers_input_reasons,
    xformers_machine_reasons,
)
from msf_kernels.spatial_attention._measured import TABLE
from msf_kernels.spatial_attention._native import native_reasons, spatial_attention_native
from msf_kernels.spatial_attention._ops import spatial_attention_triton, triton_input_reasons
from msf_kernels.spatial_attention._reference import spatial_attention_reference

_operator = Operator(
    "spatial_attention",
    [
        triton_backend(spatial_attention_triton, triton_input_reasons, derivatives=Derivatives.REVERSE),
        native_backend(spatial_attention_native, native_reasons, device_type="cpu", derivatives=Derivatives.REVERSE),
        Backend("sdpa", spatial_attention_sdpa, derivatives=Derivatives.REVERSE),
        Backend(
            "flash_attn",
            spatial_attention_flash_attn,
            flash_attn_machine_reasons,
            flash_attn_input_reasons,
            derivatives=Derivatives.REVERSE,
        ),
        Backend(
            "xformers",
            spatial_attention_xformers,
            xformers_machine_reasons,
            xformers_input_reasons,
            derivatives=Derivatives.REVERSE,
        ),
        Backend("reference", spatial_attention_reference, derivatives=Derivatives.ALL),
    ],
    auto_order,
    TABLE,
)


def spatial_attention(
    qkv: Annotated[Tensor, "float [N, T, 3C]"],
    num_heads: int,
    *,
    order: str = "legacy",
    backend: str = "auto",
) -> Annotated[Tensor, "float [N, T, C]"]:
    """Attend from every token (pixel) of an item to all tokens of the same item, head by head.

        out[n, i, h] = sum_j softmax_j(q[n, i, h] . k[n, j, h] / sqrt(D)) v[n, j, h],   D = C / num_heads

    q, k and v are read where they lie in the packed tensor. For a channels-last feature map [N, 3C, H, W] the packed
    tokens are a view: `x.permute(0, 2, 3, 1).flatten(1, 2)`.

    Args:
        qkv: Packed queries, keys and values; [N, T, 3C]; float16, bfloat16, float32 or float64; any strides. N and T
            may be zero.
        num_heads: Number of heads; divides C.
        order: How a token's 3C values are packed. `"legacy"`: by head, then q | k | v, then D. `"new"`: by q | k | v,
            then head, then D.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        [N, T, C], contiguous, heads side by side in both orders; dtype and device of `qkv`.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: `qkv` is not [N, T, 3C] with C divisible by `num_heads`; unknown `order`.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Softmax in float32 (float64 when `qkv` is float64) with the row's maximum subtracted; products accumulated in
        float32; computed in the dtype of `qkv` whatever autocast says. Backward recomputes the probabilities from q, k
        and the row's log-sum-exp (the reference keeps them). Differentiable to any order; forward mode and the
        transforms of `torch.func` on the reference only, which `auto` then takes. Deterministic, except where a library
        backend is not. An item's result does not depend on the other items of the batch; the last bits of `reference`
        and of the libraries can depend on how many there are, those of `native` and `triton` cannot.

    Source:
        Vaswani et al., arXiv 1706.03762, equation 1. Packing orders: Dhariwal and Nichol, arXiv 2105.05233, whose
        released networks use both.
    """
    require_tensor("qkv", qkv, "[N, T, 3C]")
    require_int("num_heads", num_heads, minimum=1)
    packed = qkv.shape[2]
    if packed == 0 or packed % (3 * num_heads):
        raise ValueError(
            f"qkv must be [N, T, 3C] with C > 0 and divisible by num_heads = {num_heads}; got 3C = {packed}"
        )
    require_order(order)
    result: Tensor = _operator(backend, qkv, num_heads, order=order)
    return result
