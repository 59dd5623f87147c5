"""Convolutions of the inference form: a bias chosen per call, a residual added while writing, weights packed once.

On a CPU with oneDNN the weights are brought into its blocked layout at the first call, by the operators that
`torch.compile` uses for the same purpose. On a GPU `msf_kernels.conv3x3` chooses by what was measured there. Elsewhere
they are plain convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from msf_kernels import conv3x3, pack_weight
from msf_kernels.shapes import FeatureMap


def subpixel_weight(weight: Tensor) -> Tensor:
    """Return the transposed convolution that equals nearest-neighbour doubling followed by a 3x3 convolution.

    Output pixel 2i + a of the doubled map sees the input pixels i - 1, i, i + 1 through three taps, two of which fall
    on the same input pixel: summed, they are two taps per parity a and axis, which is what a transposed convolution of
    stride 2 with four taps and padding 1 applies.

    Args:
        weight: Weight of the 3x3 convolution with padding 1; [C_out, C_in, 3, 3].

    Returns:
        Weight for `conv_transpose2d(x, ..., stride=2, padding=1)`; [C_in, C_out, 4, 4], dtype of `weight`; summed as
        `msf_kernels.pack_weight` does.

    Source:
        Sub-pixel convolution: Shi et al., arXiv 1609.05158; nearest-neighbour form: Aitken et al., arXiv 1707.02937.
    """
    k, c = weight.shape[:2]
    phases = pack_weight(weight, upsample=True).view(2, 2, k, c, 2, 2)  # output parities, K, C, 2x2 taps
    # Tap u of parity a is tap 3 - a - 2u of the transposed convolution.
    return phases.permute(3, 2, 4, 0, 5, 1).reshape(c, k, 4, 4).flip(2, 3).contiguous()


ConvBackend = Literal["packed", "conv3x3", "plain"]
"""`packed`: oneDNN with weights in its own layout; `conv3x3`: the operator of `msf_kernels`, where it fits."""


class Convolution:
    """One convolution with fixed weights.

    Args:
        weight: [C_out, C_in, k, k]; transposed: [C_in, C_out, k, k].
        bias: [C_out], or None.
        stride: Step of the output (transposed: of the input).
        padding: Zeros on each side.
        transposed: Whether it is a transposed convolution.
        dtype: Dtype of maps and weights.
        backend: What runs it; see `choose_conv_backend`.
        channels_last: Memory format of the weights where they are not packed.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: int = 1,
        padding: int = 0,
        transposed: bool = False,
        dtype: torch.dtype,
        backend: ConvBackend,
        channels_last: bool,
    ) -> None:
        """Bring the weights into the form that a call needs."""
        self.stride = [stride, stride]
        self.padding = [padding, padding]
        self.transposed = transposed
        self.is_packed = backend == "packed"
        self.is_conv3x3 = backend == "conv3x3" and tuple(weight.shape[2:]) == (3, 3)
        weight = weight.detach().to(dtype)
        self.n_weights = weight.numel()
        self.n_taps = weight.shape[2] * weight.shape[3]
        # Which blocked layout is fast depends on the map's size, so the weight is packed for the first map that comes;
        # maps of other sizes are right with it too.
        self._packed: Tensor | None = None
        self._weight: Tensor | None = (
            weight.clone()
            if self.is_packed
            else weight.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        )
        self.bias = None if bias is None else bias.detach().to(dtype)

    def __call__(
        self,
        x: FeatureMap,
        *,
        bias: Tensor | None = None,
        residual: FeatureMap | None = None,
        consume_residual: bool = False,
    ) -> FeatureMap:
        """Return the convolution of `x` plus `residual`.

        Args:
            x: [N, C_in, H, W], in the dtype of the weights.
            bias: Bias to use instead of the convolution's own; [C_out], in the dtype of the weights.
            residual: Added to the result; [N, C_out, H', W'].
            consume_residual: Permit the result to take the residual's memory.
        """
        bias = self.bias if bias is None else bias
        if not self.is_packed:
            return self._plain(x, bias, residual, consume_residual)
        tail: list[Any] = [self._pack(x), bias, self.padding, self.stride, [1, 1], 1]
        result: Tensor
        if self.transposed:
            tail.insert(3, [0, 0])  # output padding
            result = torch.ops.mkldnn._convolution_transpose_pointwise(x, *tail, "none", [], "")
            return result if residual is None else result.add_(residual)
        if residual is None:
            result = torch.ops.mkldnn._convolution_pointwise(x, *tail, "none", [], "")
        elif consume_residual:
            result = torch.ops.mkldnn._convolution_pointwise_.binary(residual, x, *tail, "add", None, None, [], None)
        else:
            result = torch.ops.mkldnn._convolution_pointwise.binary(x, residual, *tail, "add", None, None, [], None)
        return result

    def _pack(self, x: Tensor) -> Tensor:
        if self._packed is None:
            form, size = [self.stride, [1, 1], 1], list(x.shape)
            if self.transposed:
                pack = torch.ops.mkldnn._reorder_convolution_transpose_weight
                self._packed = pack(self._weight, self.padding, [0, 0], *form, size)
            else:
                self._packed = torch.ops.mkldnn._reorder_convolution_weight(self._weight, self.padding, *form, size)
            self._weight = None
        return self._packed

    def _plain(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, consume_residual: bool) -> Tensor:
        weight = cast(Tensor, self._weight)
        if self.is_conv3x3:
            return conv3x3(x, weight, bias, residual=residual, stride=self.stride[0])
        if self.transposed:
            result = F.conv_transpose2d(x, weight, bias, self.stride, self.padding)
        else:
            result = F.conv2d(x, weight, bias, self.stride, self.padding)
        if residual is None:
            return result
        return residual.add_(result) if consume_residual else result.add_(residual)


def choose_conv_backend(device: torch.device, dtype: torch.dtype) -> ConvBackend:
    """Return what runs the convolutions of this dtype on this device.

    Packed bfloat16 needs a processor whose oneDNN has fast paths for it; elsewhere the plain convolution decides.
    """
    if device.type == "cuda":
        return "conv3x3"
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return "plain"
    has_fast_path = dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "packed" if has_fast_path else "plain"


def _convolution_flops(
    x: Sequence[int], second: Sequence[int], third: Any, *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    # The overload with a residual has it before the weight, where the other has the weight before the bias.
    weight = third if isinstance(third, torch.Size) and len(third) == len(x) else second
    return conv_flop_count(list(x), list(weight), list(out_shape))


def _accumulated_flops(
    _other: Sequence[int], x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    return conv_flop_count(list(x), list(weight), list(out_shape))


def _transposed_flops(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return conv_flop_count(list(x), list(weight), list(out_shape), transposed=True)


# PyTorch's FLOP counter does not know the packed convolutions.
for _packet, _formula in (
    ("_convolution_pointwise", _convolution_flops),
    ("_convolution_pointwise_", _accumulated_flops),
    ("_convolution_transpose_pointwise", _transposed_flops),
):
    if hasattr(torch.ops.mkldnn, _packet) and getattr(torch.ops.mkldnn, _packet) not in flop_registry:
        register_flop_formula(getattr(torch.ops.mkldnn, _packet))(_formula)
