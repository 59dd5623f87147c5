"""Sums over an item whose bits depend on its shape alone."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(scaled: Tensor) -> Tensor:
    """Root mean square over all axes but the first: [n, ...] to [n]; 0 for an item without elements.

    Squares are added by halves, in an order that the shape of an item fixes: a sum by PyTorch is split otherwise when
    there are other items, strides or threads.
    """
    flat = scaled.flatten(1) if scaled.ndim > 1 else scaled[:, None]
    n_elements = flat.shape[1]
    if n_elements == 0:
        return flat.sum(1)  # without elements, but not without gradients, which are empty
    total = flat.square()
    while (width := total.shape[1]) > 1:
        half = width // 2
        added = total[:, :half] + total[:, half : 2 * half]
        total = torch.cat([added, total[:, -1:]], dim=1) if width % 2 else added
    return (total.squeeze(1) / n_elements).sqrt()
