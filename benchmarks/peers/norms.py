"""Normalisations of other libraries."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from benchmarks.peers import require, require_gpu


def liger_group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, n_groups: int) -> Callable[[], Tensor]:
    """Group norm of Liger-Kernel, which has no SiLU of its own and takes contiguous NCHW."""
    module = require("liger_kernel.ops.group_norm", "liger-kernel")
    require_gpu("Liger's group norm (Triton)", x.device.type)
    n, channels = x.shape[:2]

    def run() -> Tensor:
        flat = x.contiguous().view(n, channels, -1)
        y = module.LigerGroupNormFunction.apply(flat, weight, bias, channels, n_groups, 1e-5)
        return functional.silu(y).view(x.shape)

    return run
