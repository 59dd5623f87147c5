"""One call of the group norm: what travels from the public function to the backends and to the registered operator."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class NormCall(NamedTuple):
    """Arguments of `msf_kernels.group_norm_silu`, checked there; in the order of the registered operator's schema."""

    x: Tensor
    num_groups: int
    weight: Tensor
    bias: Tensor
    skip: Tensor | None = None
    add: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    eps: float = 1e-5
    silu: bool = True

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that were given."""
        return [value for value in self if isinstance(value, Tensor)]
