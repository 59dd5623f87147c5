"""One call of the attention block: what travels from the public function to the backends."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BlockCall(NamedTuple):
    """Arguments of `msf_kernels.attention_block`, checked there."""

    x: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    proj_weight: Tensor
    proj_bias: Tensor | None
    num_groups: int
    num_heads: int
    order: str = "legacy"
    eps: float = 1e-5

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that were given."""
        return [value for value in self if isinstance(value, Tensor)]
