"""Moving averages of a network's weights: of a fixed length in steps, or of one that grows with the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from msf.config.experiment import MOST_EMA_LENGTH


def weight_average(network: nn.Module, decay: float | None = None, length: float | None = None) -> AveragedModel:
    """Return an averaged copy of a network.

    `average <- beta * average + (1 - beta) * network` at every `update_parameters(network)`; the first call copies, so
    that the random initial weights have no part in the average. Either `beta = decay` at every step, or
    `beta = (1 - 1/t)^(gamma + 1)` at step t = 1, 2, ... (`power_of_length` gives gamma): after N steps the weights of
    step i then count `(i^(gamma + 1) - (i - 1)^(gamma + 1)) / N^(gamma + 1)`, whose standard deviation over i is
    `length * N`. So a run of any number of steps is averaged over the same share of it.

    Args:
        network: Network to follow. Parameters and buffers are averaged.
        decay: In [0, 1); 0 makes the average a copy.
        length: In (0, 0.28]; instead of `decay`.

    Returns:
        A module in evaluation mode, whose parameters need no gradient. The averaged network is its `.module`;
        its state dict holds the number of updates too, so that an interrupted training resumes exactly.

    Raises:
        ValueError: A number out of range, or both or none of them.

    Source:
        The growing one: Karras et al., arXiv 2312.02696, section 3.1 (power function averages).
    """
    if (decay is None) == (length is None):
        raise ValueError(f"exactly one of decay and length must be given; got decay={decay!r}, length={length!r}")
    if length is not None:
        update = _power_update(power_of_length(length))
    elif decay is None or not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1); got {decay}")
    else:
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    average.eval()
    return average


def power_of_length(length: float) -> float:
    """Return the power gamma of an average whose weights, as a share of the run, have this standard deviation.

    Weights in proportion to `i^gamma` have the relative deviation `sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))`.

    Args:
        length: In (0, 0.28]; 0.05 gives 16.97, 0.1 gives 6.94.

    Raises:
        ValueError: Out of range.

    Source:
        Karras et al., arXiv 2312.02696, section 3.1 and appendix C.
    """
    if not 0 < length <= MOST_EMA_LENGTH:
        raise ValueError(f"length must be in (0, {MOST_EMA_LENGTH}]; got {length}")
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def _power_update(gamma: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], n_averaged: Any) -> None:
        share = 1 - (1 - 1 / (int(n_averaged) + 1)) ** (gamma + 1)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, share)
        else:
            for mine, theirs in zip(averaged, current, strict=True):
                mine.copy_(theirs)

    return update
