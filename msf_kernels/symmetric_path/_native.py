"""The path in the native extension: its operators, their gradients, and what they do not take."""

from __future__ import annotations

from torch import Tensor

from msf_kernels import _ext
from msf_kernels.symmetric_path._allocation import fake_symmetric_path_bwd, fake_symmetric_path_fwd
from msf_kernels.symmetric_path._autograd import SymmetricPathOperators, differentiable

symmetric_path_native = differentiable(
    SymmetricPathOperators(
        fwd=_ext.operator("symmetric_path_fwd", fake_symmetric_path_fwd),
        bwd=_ext.operator("symmetric_path_bwd", fake_symmetric_path_bwd),
    )
)


def native_reasons(
    image: Tensor, semantic: Tensor, t: Tensor, *, sample_index: Tensor, seed: int, sigma_min: float
) -> list[str]:
    """Return why the native operators cannot serve these inputs; empty when they can."""
    return _ext.tensor_reasons("symmetric_path_fwd", (image,))
