"""From the setting `precision` to the dtype of an inference form."""

from __future__ import annotations

import torch

from msf.config import PrecisionName
from msf.precision import auto_precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}


def precision_of(dtype: torch.dtype) -> str:
    """Return the short name of a dtype of arithmetic."""
    return _NAMES[dtype]


def dtype_for(
    precision: PrecisionName,
    base_channels: int,
    own: torch.dtype,
    device: torch.device,
    n_draws: int | None = None,
) -> torch.dtype:
    """Return the dtype that a network is evaluated in.

    Args:
        precision: The setting; `auto` leaves a network whose weights are not float32 in its own dtype.
        base_channels: Width of the network.
        own: Dtype of its weights.
        device: Where it is.
        n_draws: Draws per picture; None: many.

    Raises:
        ValueError: As for `auto_precision`.
    """
    if precision != "auto":
        return DTYPES[precision]
    return own if own != torch.float32 else DTYPES[auto_precision(device, base_channels, n_draws).precision]
