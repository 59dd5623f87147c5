"""The distance as operators of torch.library: schemas, fakes, CPU bodies, FLOP counts, autograd.

`msf_triton::class_distance_fwd` and `msf_triton::class_distance_bwd` are what `torch.compile`, autograd and CUDA graphs
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
from msf_kernels.class_distance._allocation import empty_distances, empty_gradients, fake_class_distance_bwd
from msf_kernels.class_distance._autograd import ClassDistanceOperators, differentiable
from msf_kernels.class_distance._reference import class_distance_reference


def _bwd_formula(grad: Tensor, semantic: Tensor, codes: Tensor, needs_codes: bool) -> tuple[Tensor, Tensor]:
    pixels = semantic.to(grad.dtype).flatten(2)  # [N, K, P]
    difference = pixels[:, None] - codes.to(grad.dtype)[:, :, None]  # [N, n_classes, K, P]
    distance = torch.linalg.vector_norm(difference, dim=2, keepdim=True)
    scale = grad[:, :, None, None] / (distance * pixels.shape[2])
    weighted = difference * scale.where(distance > 0, 0)
    grad_semantic, grad_codes = empty_gradients(semantic, codes, needs_codes)
    grad_semantic.copy_(weighted.sum(1).view(semantic.shape))
    if needs_codes:
        grad_codes.copy_(-weighted.sum((0, 3)))
    return grad_semantic, grad_codes


_operators = ClassDistanceOperators(
    fwd=register(
        "class_distance_fwd",
        kernel="msf_kernels.class_distance._triton:launch_class_distance_fwd",
        formula=class_distance_reference,
        fake=empty_distances,
    ),
    bwd=register(
        "class_distance_bwd",
        kernel="msf_kernels.class_distance._triton:launch_class_distance_bwd",
        formula=_bwd_formula,
        fake=fake_class_distance_bwd,
    ),
)

class_distance_triton = differentiable(_operators)


@register_flop_formula(torch.ops.msf_triton.class_distance_fwd)
def _fwd_flops(semantic_shape: Sequence[int], codes_shape: Sequence[int], **_outputs: Any) -> int:
    """Subtract, square and add per channel and class; a root and a sum per class."""
    return codes_shape[0] * (3 * math.prod(semantic_shape) + 2 * _n_pixels(semantic_shape))


@register_flop_formula(torch.ops.msf_triton.class_distance_bwd)
def _bwd_flops(
    _grad_shape: Sequence[int],
    semantic_shape: Sequence[int],
    codes_shape: Sequence[int],
    needs_codes: bool,
    **_outputs: Any,
) -> int:
    """The distances again, a factor per class, then subtract, scale and add per channel and class."""
    per_channel = 7 if needs_codes else 6
    return codes_shape[0] * (per_channel * math.prod(semantic_shape) + 3 * _n_pixels(semantic_shape))


def _n_pixels(semantic_shape: Sequence[int]) -> int:
    n, _, height, width = semantic_shape
    return n * height * width
