"""The order in which `auto` tries convolution backends, from what was measured."""

from __future__ import annotations

import torch

from msf_kernels._tracing import constant_while_tracing
from msf_kernels.conv3x3._call import ConvCall
from msf_kernels.conv3x3._measured import TABLE

# On a GPU without measurements. cuDNN was tuned for each GPU; the Triton kernel has not been timed on any yet.
UNMEASURED_ORDER = ("aten", "triton", "reference")


def auto_order(call: ConvCall) -> tuple[str, ...]:
    """Return the names of the backends that `auto` tries, best first. The number of items plays no part in it."""
    x = call.x
    if not x.is_cuda:
        return UNMEASURED_ORDER
    return _cuda_order(
        x.device.index,
        str(x.dtype).removeprefix("torch."),
        call.in_channels,
        call.weight.shape[-4],
        call.stride,
        call.upsample,
        call.norm_scale is not None,
        x.shape[2] * x.shape[3],
    )


@constant_while_tracing
def _cuda_order(
    device_index: int | None,
    dtype: str,
    in_channels: int,
    out_channels: int,
    stride: int,
    upsample: bool,
    is_normalised: bool,
    n_pixels: int,
) -> tuple[str, ...]:
    return TABLE.order(
        torch.cuda.get_device_name(device_index),
        UNMEASURED_ORDER,
        dtype=dtype,
        in_channels=in_channels,
        out_channels=out_channels,
        stride=stride,
        upsample=upsample,
        is_normalised=is_normalised,
        n_pixels=n_pixels,
    )
