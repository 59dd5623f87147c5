"""The clipped product in plain PyTorch: the definition, and the fallback on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_product_reference(x: Tensor, y: Tensor, limit: float) -> Tensor:
    """Compute what `msf_kernels.clipped_product` documents; shapes as `x`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return (x.to(dtype) * y.to(dtype)).clamp(-limit, limit).to(x.dtype).contiguous()
