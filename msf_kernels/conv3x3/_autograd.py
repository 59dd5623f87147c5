"""Gradients of the native convolution: that of its input is the same convolution with the taps turned around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msf_kernels._derivatives import any_requires_grad, composed_gradients, must_compose, refusing_second_when_traced
from msf_kernels.conv3x3._formula import convolved

# (h, weight, bias, residual, stride, upsample) -> [N, K, OH, OW]
Convolve = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, int, bool], Tensor]


def differentiable(convolve: Convolve) -> Convolve:
    """Return the same function with reverse derivatives.

    With stride 1 the gradient of the input is computed by `convolve` itself, that of the weight by PyTorch; for other
    strides, doubled maps and further derivatives all are those of the definition.
    """

    def definition(h: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *form: Any) -> Tensor:
        out = convolved(h, weight, bias, *form)
        return out if residual is None else out + residual

    class Convolution(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            h: Tensor,
            weight: Tensor,
            bias: Tensor | None,
            residual: Tensor | None,
            stride: int,
            upsample: bool,
        ) -> Tensor:
            ctx.save_for_backward(h, weight, bias, residual)
            ctx.form = stride, upsample
            return convolve(h, weight, bias, residual, stride, upsample)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
            h, weight, bias, residual = ctx.saved_tensors
            of_h, of_weight, of_bias, of_residual = ctx.needs_input_grad[:4]
            if must_compose(grad) or ctx.form != (1, False) or not h.numel():
                found = composed_gradients(
                    lambda *inputs: definition(*inputs, *ctx.form),
                    (h, weight, bias, residual),
                    ctx.needs_input_grad[:4],
                    (grad,),
                )
                return *found, None, None
            grad_h = convolve(grad, _turned(weight), None, None, 1, False) if of_h else None
            grad_weight = grad_bias = None
            if of_weight or of_bias:
                _, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                    grad, h, weight, [weight.shape[0]], [1, 1], [1, 1], [1, 1], False, [0, 0], 1,
                    [False, of_weight, of_bias],
                )  # fmt: skip
            return grad_h, grad_weight, grad_bias, grad if of_residual else None, None, None

    def call(
        h: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, upsample: bool
    ) -> Tensor:
        if not any_requires_grad((h, weight, bias, residual)):
            return convolve(h, weight, bias, residual, stride, upsample)
        out: Tensor = Convolution.apply(h, weight, bias, residual, stride, upsample)  # type: ignore[no-untyped-call]
        return refusing_second_when_traced(out)

    return call


def _turned(weight: Tensor) -> Tensor:
    """Return the weight of the convolution that takes a gradient back; [K, C, 3, 3] -> [C, K, 3, 3]."""
    return weight.flip(2, 3).transpose(0, 1).contiguous()
