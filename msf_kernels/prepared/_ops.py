"""The prepared convolution in Triton as an operator of torch.library, with its fake, its FLOPs and its body on a CPU.

`msf_triton::prepared_convolution_fwd` is what `torch.compile` and CUDA graphs see of a call. It has no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from msf_kernels._triton.machine import tensor_reasons
from msf_kernels._triton.output_norm import OutputNorm, can_normalise
from msf_kernels._triton.registration import register
from msf_kernels.conv3x3 import conv3x3, pack_weight
from msf_kernels.group_norm_silu import group_norm_silu
from msf_kernels.memory_format import in_memory_format
from msf_kernels.prepared._fixed import FixedConvolution
from msf_kernels.prepared._reference import followed

_MAX_WEIGHT = 2**31


def _formula(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    shortcut: Sequence[Tensor],
    shortcut_weight: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    stride: int,
    upsample: bool,
) -> Tensor:
    wide, side = torch.promote_types(x.dtype, torch.float32), weight.shape[2]
    taps = weight.permute(0, 1, 4, 2, 3).to(wide)
    if upsample:
        out = conv3x3(x.to(wide), taps, None, upsample=True, backend="reference")
    else:
        out = functional.conv2d(x.to(wide), taps[0], None, stride, side // 2)
    norm = None
    if norm_weight is not None and norm_bias is not None:
        norm = OutputNorm(num_groups, norm_weight, norm_bias, eps, silu)
    out = followed(out, bias, residual, shortcut, shortcut_weight, norm)
    return in_memory_format(out.to(x.dtype), torch.channels_last)


def _fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    stride, upsample = rest[-2:]
    factor = 2 if upsample else 1
    height, width = (factor * -(-size // stride) for size in x.shape[2:])
    shape = (x.shape[0], weight.shape[1], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_run = register(
    "prepared_convolution_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor[] shortcut, "
    "Tensor? shortcut_weight, Tensor? norm_weight, Tensor? norm_bias, int num_groups, float eps, bool silu, "
    "int stride, bool upsample) -> Tensor",
    kernel="msf_kernels.prepared._triton:launch_prepared_convolution",
    formula=_formula,
    fake=_fake,
)


class TritonForm:
    """A convolution of one or nine taps, or of a doubled map with summed ones, with all that follows in one launch."""

    is_whole = True

    def __init__(self, convolution: FixedConvolution, _x: Tensor) -> None:
        """Lay the weights out with channels innermost."""
        self._stride, self._upsample = convolution.stride, convolution.upsample
        weight = convolution.weight.to(convolution.dtype)
        phases = pack_weight(weight, upsample=True) if convolution.upsample else weight.unsqueeze(0)
        self._weight = phases.permute(0, 1, 3, 4, 2).contiguous()
        shortcut = convolution.shortcut_weight
        self._shortcut_weight = None if shortcut is None else shortcut.to(convolution.dtype).contiguous()

    def __call__(
        self,
        x: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        _consume_residual: bool,
        shortcut: Sequence[Tensor] = (),
        norm: OutputNorm | None = None,
    ) -> Tensor:
        """Return the convolution; [N, C, H, W] -> [N, K, H', W']. Of a large map the norm is a launch of its own."""
        n_pixels = -(-x.shape[2] // self._stride) * -(-x.shape[3] // self._stride) * (4 if self._upsample else 1)
        is_inside = norm is not None and not self._upsample
        is_inside = is_inside and can_normalise(n_pixels, self._weight.shape[1], norm.num_groups)  # type: ignore[union-attr]
        inside = norm if is_inside else None
        of_norm = (None, None, 0, 1.0, False) if inside is None else _arguments(inside)
        out: Tensor = _run(
            x, self._weight, bias, residual, list(shortcut), self._shortcut_weight if shortcut else None, *of_norm,
            self._stride, self._upsample,
        )  # fmt: skip
        if norm is None or is_inside:
            return out
        return group_norm_silu(out, norm.num_groups, norm.weight, norm.bias, eps=norm.eps, silu=norm.silu)


def _arguments(norm: OutputNorm) -> tuple[Tensor, Tensor, int, float, bool]:
    return norm.weight, norm.bias, norm.num_groups, norm.eps, norm.silu


def triton_input_reasons(convolution: FixedConvolution, x: Tensor) -> list[str]:
    """Return why the Triton kernel cannot serve this convolution; empty when it can."""
    reasons = tensor_reasons((x,), (convolution.dtype,))
    size = convolution.weight.shape[2]
    if (size, convolution.padding) not in ((3, 1), (1, 0)):
        reasons.append(f"takes 3x3 taps with padding 1, or 1x1; got {size}x{size}, padding {convolution.padding}")
    if convolution.stride > 2:
        reasons.append(f"takes a stride of 1 or 2; got {convolution.stride}")
    if convolution.weight.numel() >= _MAX_WEIGHT:
        reasons.append(f"takes weights of less than {_MAX_WEIGHT} elements; got {convolution.weight.numel()}")
    return reasons


@register_flop_formula(torch.ops.msf_triton.prepared_convolution_fwd)
def _flops(x: Sequence[int], weight: Sequence[int], *rest: Any, **_outputs: Any) -> int:
    """2 operations per multiply-add; doubled maps take 4 phases of 4 taps per small pixel, not 4 of 9."""
    shortcut_weight, stride, upsample = rest[3], rest[-2], rest[-1]
    pixels: int = x[0] * -(-x[2] // stride) * -(-x[3] // stride)
    products: int = math.prod(weight)
    if shortcut_weight is not None:
        products += math.prod(shortcut_weight) * (4 if upsample else 1)
    return 2 * pixels * products
