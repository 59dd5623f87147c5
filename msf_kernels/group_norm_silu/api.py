"""The public group norm: what it computes, which inputs it takes, which implementation serves a call."""

from __future__ import annotations

from torch import Tensor

from msf_kernels._derivatives import Derivatives
from msf_kernels._ext import native_backend
from msf_kernels._triton.machine import triton_backend
from msf_kernels.backend import Backend, Operator
from msf_kernels.checks import (
    require_bool,
    require_int,
    require_positive,
    require_same_device,
    require_same_dtype,
    require_shape,
    require_tensor,
)
from msf_kernels.group_norm_silu._call import NormCall
from msf_kernels.group_norm_silu._native import group_norm_silu_native, native_reasons
from msf_kernels.group_norm_silu._ops import group_norm_silu_triton, triton_input_reasons
from msf_kernels.group_norm_silu._reference import group_norm_silu_reference
from msf_kernels.shapes import FeatureMap

_operator = Operator(
    "group_norm_silu",
    [
        triton_backend(group_norm_silu_triton, triton_input_reasons, derivatives=Derivatives.REVERSE),
        native_backend(group_norm_silu_native, native_reasons, derivatives=Derivatives.REVERSE),
        Backend("reference", group_norm_silu_reference, derivatives=Derivatives.ALL),
    ],
    record=NormCall,
)


def group_norm_silu(
    x: FeatureMap,
    num_groups: int,
    weight: Tensor,
    bias: Tensor,
    *,
    skip: FeatureMap | None = None,
    add: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    silu: bool = True,
    backend: str = "auto",
) -> FeatureMap:
    """Normalise groups of channels, then scale, shift and apply SiLU, in one pass over memory where the device allows.

        h = concatenate([x, skip], channels) + add
        n = (h - mean_group(h)) / sqrt(var_group(h) + eps) * weight + bias
        y = n * (1 + scale) + shift;  result = y * sigmoid(y), or y when silu is False

    Note the `1 + scale`: a zero `scale` and a zero `shift` leave the norm as it is. Below C stands for all channels,
    those of `x` plus those of `skip`. A group is C / num_groups neighbouring channels with all pixels of one item; it
    may straddle the seam between `x` and `skip`. The variance is the biased one (divided by the number of values).

    Args:
        x: Feature map; [N, C, H, W] (without `skip`); float16, bfloat16, float32 or float64; any strides. Any axis may
            be empty.
        num_groups: Number of groups; divides C.
        weight: Factor per channel; [C]; any floating dtype.
        bias: Offset per channel; [C]; any floating dtype.
        skip: Feature map whose channels follow those of `x`; [N, C_skip, H, W]; dtype of `x`. It is read where it is,
            not concatenated, by the backends that fuse.
        add: Offset before the norm, such as a time embedding; [N, C] or [1, C]; any floating dtype.
        scale: Factor minus one after the norm; [N, C] or [1, C]; any floating dtype.
        shift: Offset after the norm; [N, C] or [1, C]; any floating dtype.
        eps: Added to the variance; finite, > 0.
        silu: Whether SiLU is applied.
        backend: `"auto"`, or the name of one backend, which is then served or refused and never replaced.

    Returns:
        [N, C, H, W] in the dtype and on the device of `x`; channels-last where `x` is channels-last, else contiguous.

    Raises:
        TypeError: An argument of another Python type or dtype.
        ValueError: Axes, sizes, devices that do not fit; C not divisible by `num_groups`; `eps` not finite and > 0.
        BackendUnavailableError: The named backend cannot serve this call; the text lists every backend's reasons.

    Numerics:
        Statistics and arithmetic in float32 (float64 when `x` is float64), one rounding to the dtype of `x` at the
        end, also under autocast. The variance comes from centred values, never from E[x^2] - E[x]^2. Deterministic.
        An item's result does not depend on the other items of the batch; the last bits of `reference` can depend on how
        many there are, those of `native` and `triton` cannot. Backward recomputes the normalised values
        from the saved inputs and statistics. Differentiable with respect to every tensor, to any order; forward mode
        and the transforms of `torch.func` on the reference only, which `auto` then takes.

    Source:
        Group norm: Wu and He, arXiv 1803.08494, section 3. Scale and shift after the norm: Dhariwal and Nichol, arXiv
        2105.05233, section 3.1 (adaptive group norm, there y_s = 1 + scale).
    """
    require_tensor("x", x, "[N, C, H, W]")
    require_int("num_groups", num_groups, minimum=1)
    n, channels, height, width = x.shape
    axes = "[N, C, H, W]"
    if skip is not None:
        axes = "[N, C + C_skip, H, W]"
        require_tensor("skip", skip, "[N, C_skip, H, W]")
        require_same_dtype("skip", skip, "x", x)
        require_same_device("skip", skip, "x", x)
        require_shape("skip", skip, "[N, C_skip, H, W] of x", (n, skip.shape[1], height, width))
        channels += skip.shape[1]
    if channels % num_groups:
        raise ValueError(f"num_groups must divide the channels of {axes}, {channels}; got {num_groups}")
    for name, vector in (("weight", weight), ("bias", bias)):
        require_tensor(name, vector, "[C]")
        require_shape(name, vector, "[C]", (channels,))
        require_same_device(name, vector, "x", x)
    for name, rows in (("add", add), ("scale", scale), ("shift", shift)):
        if rows is not None:
            require_tensor(name, rows, "[N or 1, C]")
            require_shape(name, rows, "[N or 1, C]", (n, channels), (1, channels))
            require_same_device(name, rows, "x", x)
    require_positive("eps", eps)
    require_bool("silu", silu)
    result: Tensor = _operator(
        backend, x, num_groups, weight, bias, skip=skip, add=add, scale=scale, shift=shift, eps=eps, silu=silu
    )
    return result
