"""The path as operators of torch.library: schemas, fakes, CPU bodies, FLOP counts, autograd.

`msf_triton::symmetric_path_fwd` and `msf_triton::symmetric_path_bwd` are what `torch.compile`, autograd and CUDA graphs
see of a call: one boundary per direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from msf_kernels._triton.registration import register
from msf_kernels.symmetric_path._allocation import (
    empty_gradients,
    fake_symmetric_path_bwd,
    fake_symmetric_path_fwd,
)
from msf_kernels.symmetric_path._autograd import SymmetricPathOperators, differentiable
from msf_kernels.symmetric_path._reference import path_gradients, symmetric_path_reference


def _fwd_formula(
    image: Tensor, semantic: Tensor, t: Tensor, sample_index: Tensor, seed: int, sigma_min: float
) -> tuple[Tensor, Tensor]:
    return symmetric_path_reference(image, semantic, t, sample_index=sample_index, seed=seed, sigma_min=sigma_min)


def _bwd_formula(
    grad_z: Tensor, grad_dz: Tensor, t: Tensor, sigma_min: float, n_image_channels: int
) -> tuple[Tensor, Tensor]:
    grads = empty_gradients(grad_z, n_image_channels)
    for grad, value in zip(grads, path_gradients(grad_z, grad_dz, t, sigma_min, n_image_channels), strict=True):
        grad.copy_(value)
    return grads


symmetric_path_triton = differentiable(
    SymmetricPathOperators(
        fwd=register(
            "symmetric_path_fwd",
            kernel="msf_kernels.symmetric_path._triton:launch_symmetric_path_fwd",
            formula=_fwd_formula,
            fake=fake_symmetric_path_fwd,
        ),
        bwd=register(
            "symmetric_path_bwd",
            kernel="msf_kernels.symmetric_path._triton:launch_symmetric_path_bwd",
            formula=_bwd_formula,
            fake=fake_symmetric_path_bwd,
        ),
    )
)


@register_flop_formula(torch.ops.msf_triton.symmetric_path_fwd)
def _fwd_flops(image_shape: Sequence[int], semantic_shape: Sequence[int], *_rest: Any, **_outputs: Any) -> int:
    """Three operations for the state and two for the velocity; the noise is not counted."""
    return 5 * (math.prod(image_shape) + math.prod(semantic_shape))


@register_flop_formula(torch.ops.msf_triton.symmetric_path_bwd)
def _bwd_flops(grad_shape: Sequence[int], *_rest: Any, **_outputs: Any) -> int:
    return 3 * math.prod(grad_shape)
