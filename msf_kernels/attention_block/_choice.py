"""The order in which `auto` tries backends of the attention block, from what was measured."""

from __future__ import annotations

import torch

from msf_kernels._tracing import constant_while_tracing
from msf_kernels.attention_block._call import BlockCall
from msf_kernels.attention_block._measured import TABLE

# On a GPU without measurements. cuBLAS was tuned for each GPU; the fused projections have not been timed on any yet.
UNMEASURED_ORDER = ("composed", "triton", "reference")


def auto_order(call: BlockCall) -> tuple[str, ...]:
    """Return the names of the backends that `auto` tries, best first. The number of items plays no part in it."""
    x = call.x
    if not x.is_cuda:
        return UNMEASURED_ORDER
    dtype = str(x.dtype).removeprefix("torch.")
    return _cuda_order(x.device.index, dtype, x.shape[1], call.num_heads, x.shape[2] * x.shape[3])


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
