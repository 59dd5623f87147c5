"""The order in which `auto` tries backends of the attention block, from what was measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msf_kernels._tracing import constant_while_tracing
from msf_kernels.attention_block._measured import TABLE

# On a GPU without measurements. cuBLAS was tuned for each GPU; the fused projections have not been timed on any yet.
UNMEASURED_ORDER = ("composed", "triton", "reference")


def auto_order(x: Tensor, *_parameters: Any, **_options: Any) -> tuple[str, ...]:
    """Return the names of the backends that `auto` tries, best first. The number of items plays no part in it."""
    if not x.is_cuda:
        return UNMEASURED_ORDER
    *_weights, _num_groups, num_heads = _parameters
    dtype = str(x.dtype).removeprefix("torch.")
    return _cuda_order(x.device.index, dtype, x.shape[1], num_heads, x.shape[2] * x.shape[3])


@constant_while_tracing
def _cuda_order(device_index: int | None, dtype: str, channels: int, num_heads: int, n_tokens: int) -> tuple[str, ...]:
    return TABLE.order(
        torch.cuda.get_device_name(device_index),
        UNMEASURED_ORDER,
        dtype=dtype,
        channels=channels,
        num_heads=num_heads,
        n_tokens=n_tokens,
    )
