"""Exponential moving average of a network's weights."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def weight_average(network: nn.Module, decay: float) -> AveragedModel:
    """Return an averaged copy of a network.

    `average <- decay * average + (1 - decay) * network` at every `update_parameters(network)`; the first call copies,
    so that the random initial weights have no part in the average.

    Args:
        network: Network to follow. Parameters and buffers are averaged.
        decay: In [0, 1); 0 makes the average a copy.

    Returns:
        A module in evaluation mode, whose parameters need no gradient. The averaged network is its `.module`;
        its state dict holds the number of updates too, so that an interrupted training resumes exactly.

    Raises:
        ValueError: Decay out of range.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1); got {decay}")
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    average.eval()
    return average
