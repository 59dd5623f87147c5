"""The prepared convolution by oneDNN, with weights in its own blocked layout.

The private operators are those that `torch.compile` uses for the same purpose; nothing else packs weights once and adds
a residual while writing. PyTorch's FLOP counter does not know them, so their formulas are registered here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from msf_kernels.prepared._fixed import FixedConvolution
from msf_kernels.prepared._subpixel import transposed_weight


class OnednnForm:
    """A convolution, or the transposed convolution that equals one of the doubled map.

    Which blocked layout is fast depends on the map, so the weights are packed for the first one; maps of other sizes
    are right with it too.
    """

    def __init__(self, convolution: FixedConvolution, x: Tensor) -> None:
        """Pack the weights."""
        self._convolution = convolution.without_weights()
        self._transposed = convolution.upsample
        stride = 2 if self._transposed else convolution.stride
        self._padding, self._stride = [convolution.padding] * 2, [stride, stride]
        form, size = [self._stride, [1, 1], 1], list(x.shape)
        if self._transposed:
            weight = transposed_weight(convolution)
            pack = torch.ops.mkldnn._reorder_convolution_transpose_weight
            self._weight: Tensor = pack(weight, self._padding, [0, 0], *form, size)
        else:
            weight = convolution.weight.to(convolution.dtype)
            self._weight = torch.ops.mkldnn._reorder_convolution_weight(weight, self._padding, *form, size)

    def __call__(self, x: Tensor, bias: Tensor | None, residual: Tensor | None, consume_residual: bool) -> Tensor:
        """Return the convolution; [N, C, H, W] -> [N, K, H', W']."""
        if not x.numel():  # which oneDNN refuses
            return x.new_zeros(self._convolution.out_shape(x))
        tail: list[Any] = [self._weight, bias, self._padding, self._stride, [1, 1], 1]
        result: Tensor
        if self._transposed:
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


def onednn_machine_reasons() -> list[str]:
    """Return why oneDNN cannot run on this machine; empty when it can."""
    if not torch._C._has_mkldnn:
        return ["this PyTorch was built without oneDNN"]
    missing = [name for name in _FLOPS if not hasattr(torch.ops.mkldnn, name)]
    return [f"this PyTorch has no mkldnn::{name}" for name in missing]


def onednn_input_reasons(convolution: FixedConvolution, x: Tensor) -> list[str]:
    """Return why oneDNN cannot serve this convolution; empty when it can.

    Packed bfloat16 needs a processor whose oneDNN has fast paths for it.
    """
    reasons = []
    if x.device.type != "cpu":
        reasons.append(f"has no kernels for tensors on {x.device.type}")
    if convolution.dtype not in (torch.float32, torch.bfloat16):
        reasons.append(f"packs float32 and bfloat16; got {convolution.dtype}")
    elif convolution.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        reasons.append("this processor has no fast bfloat16 convolutions")
    if not x.numel():
        reasons.append(f"packs for a map that is not empty; got {list(x.shape)}")
    return reasons


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


_FLOPS: dict[str, Callable[..., int]] = {
    "_convolution_pointwise": _convolution_flops,
    "_convolution_pointwise_": _accumulated_flops,
    "_convolution_transpose_pointwise": _transposed_flops,
}
for _name, _formula in _FLOPS.items():
    _packet = getattr(torch.ops.mkldnn, _name, None)
    if _packet is not None and _packet not in flop_registry:
        register_flop_formula(cast(Any, _packet))(_formula)
