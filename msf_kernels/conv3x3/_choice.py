"""The order in which `auto` tries convolution backends, from what was measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from msf_kernels._tracing import constant_while_tracing
from msf_kernels.conv3x3._measured import TABLE

# On a GPU without measurements. cuDNN was tuned for each GPU; the Triton kernel has not been timed on any yet.
UNMEASURED_ORDER = ("aten", "triton", "reference")


def auto_order(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    upsample: bool = False,
    skip: Tensor | None = None,
    norm_scale: Tensor | None = None,
    **_rest: Any,
) -> tuple[str, ...]:
    """Return the names of the backends that `auto` tries, best first. The number of items plays no part in it."""
    if not x.is_cuda:
        return UNMEASURED_ORDER
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    return _cuda_order(
        x.device.index,
        str(x.dtype).removeprefix("torch."),
        channels,
        weight.shape[-4],
        stride,
        upsample,
        norm_scale is not None,
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
