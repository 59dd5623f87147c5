"""Gradients of the mean distances over any family of operators that compute them; votes have none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msf_kernels._derivatives import composed_gradients, must_compose, refusing_second_when_traced
from msf_kernels.class_distance._reference import class_distance_reference


@dataclass(frozen=True)
class ClassDistanceOperators:
    """One backend's operators.

    Args:
        fwd: `(semantic, codes) -> (distance, votes)`.
        bwd: `(grad, semantic, codes, needs_codes) -> (grad_semantic, grad_codes)`; without `needs_codes` the second
            has no classes.
    """

    fwd: Callable[..., tuple[Tensor, Tensor]]
    bwd: Callable[..., tuple[Tensor, Tensor]]


def differentiable(operators: ClassDistanceOperators) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the public function, without its checks and its selector, over the given operators."""

    class ClassDistance(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, semantic: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
            ctx.save_for_backward(semantic, codes)
            distance, votes = operators.fwd(semantic, codes)
            ctx.mark_non_differentiable(votes)
            return distance, votes

        @staticmethod
        def backward(ctx: Any, grad: Tensor, _grad_votes: Tensor) -> tuple[Tensor | None, Tensor | None]:
            semantic, codes = ctx.saved_tensors
            needs_semantic, needs_codes = ctx.needs_input_grad
            if must_compose(grad):
                composed = composed_gradients(
                    class_distance_reference, (semantic, codes), ctx.needs_input_grad, (grad, None)
                )
                return composed[0], composed[1]
            grad_semantic, grad_codes = operators.bwd(grad, semantic, codes, needs_codes)
            return grad_semantic if needs_semantic else None, grad_codes if needs_codes else None

    def class_distance(semantic: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and (semantic.requires_grad or codes.requires_grad):
            result: tuple[Tensor, Tensor] = ClassDistance.apply(semantic, codes)  # type: ignore[no-untyped-call]
            return refusing_second_when_traced(result)
        return operators.fwd(semantic, codes)

    return class_distance
