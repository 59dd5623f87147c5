"""The order in which `auto` tries backends of the attention block, from what was measured."""

from __future__ import annotations

import torch

from msf_kernels._tracing import constant_while_tracing
from msf_kernels.attention_block._call import BlockCall
from msf_kernels.attention_block._measured import TABLE

# On a GPU without measurements. In half precision four launches instead of seven, and no pass for biases and residual;
# the Triton kernels have not been timed on any GPU yet. float32 is multiplied as such, which cuBLAS does better.
UNMEASURED_ORDER = ("composed", "triton", "reference")
UNMEASURED_HALF_ORDER = ("triton", "composed", "reference")


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
        UNMEASURED_HALF_ORDER if dtype in ("bfloat16", "float16") else UNMEASURED_ORDER,
        dtype=dtype,
        channels=channels,
        num_heads=num_heads,
        n_tokens=n_tokens,
    )
