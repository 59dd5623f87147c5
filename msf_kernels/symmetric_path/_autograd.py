"""Gradients of the path over any family of operators that compute it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msf_kernels._derivatives import must_compose, refusing_second_when_traced
from msf_kernels.distinct import distinct
from msf_kernels.symmetric_path._reference import path_gradients


@dataclass(frozen=True)
class SymmetricPathOperators:
    """One backend's operators.

    Args:
        fwd: `(image, semantic, t, sample_index, seed, sigma_min) -> (z_t, dz_t)`.
        bwd: `(grad_z, grad_dz, t, sigma_min, n_image_channels) -> (grad_image, grad_semantic)`.
    """

    fwd: Callable[..., tuple[Tensor, Tensor]]
    bwd: Callable[..., tuple[Tensor, Tensor]]


def differentiable(operators: SymmetricPathOperators) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the public function, without its checks and its selector, over the given operators."""

    class SymmetricPath(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            image: Tensor,
            semantic: Tensor,
            t: Tensor,
            sample_index: Tensor,
            seed: int,
            sigma_min: float,
        ) -> tuple[Tensor, Tensor]:
            ctx.save_for_backward(t)
            ctx.sigma_min, ctx.n_image_channels = sigma_min, image.shape[1]
            return operators.fwd(image, semantic, t, sample_index, seed, sigma_min)

        @staticmethod
        def backward(ctx: Any, grad_z: Tensor, grad_dz: Tensor) -> tuple[Tensor | None, ...]:
            (t,) = ctx.saved_tensors
            backward = path_gradients if must_compose(grad_z, grad_dz) else operators.bwd
            grad_image, grad_semantic = backward(grad_z, grad_dz, t, ctx.sigma_min, ctx.n_image_channels)
            return grad_image, grad_semantic, None, None, None, None

    def symmetric_path(
        image: Tensor, semantic: Tensor, t: Tensor, *, sample_index: Tensor, seed: int, sigma_min: float = 1e-4
    ) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() and (image.requires_grad or semantic.requires_grad):
            image, semantic = distinct([image, semantic])
            path: tuple[Tensor, Tensor] = SymmetricPath.apply(  # type: ignore[no-untyped-call]
                image, semantic, t, sample_index, seed, sigma_min
            )
            return refusing_second_when_traced(path)
        return operators.fwd(image, semantic, t, sample_index, seed, sigma_min)

    return symmetric_path
