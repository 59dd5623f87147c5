"""The distance in the native extension: its operators, their gradients, and what they do not take."""

from __future__ import annotations

from torch import Tensor

from msf_kernels import _ext
from msf_kernels.class_distance._allocation import empty_distances, fake_class_distance_bwd
from msf_kernels.class_distance._autograd import ClassDistanceOperators, differentiable

# Sixteen pixels with all their channels fit the kernel's buffer.
_MAX_CHANNELS = 1024

class_distance_native = differentiable(
    ClassDistanceOperators(
        fwd=_ext.operator("class_distance_fwd", empty_distances),
        bwd=_ext.operator("class_distance_bwd", fake_class_distance_bwd),
    )
)


def native_reasons(semantic: Tensor, codes: Tensor) -> list[str]:
    """Return why the native operators cannot serve these inputs; empty when they can."""
    reasons = _ext.tensor_reasons("class_distance_fwd", (semantic,))
    if codes.shape[1] > _MAX_CHANNELS:
        reasons.append(f"takes codes of at most {_MAX_CHANNELS} channels; got {codes.shape[1]}")
    return reasons
