"""What the loss measures: the velocity, or what it leads to."""

from __future__ import annotations

import torch
from torch import Tensor

from msf.config import LossWeighting
from msf_kernels.shapes import JointState, TimeBatch


def weighted(velocity: JointState, t: TimeBatch, image_channels: int, weighting: LossWeighting) -> JointState:
    """Return a velocity, or the target of one, in the units in which the loss compares them.

    `velocity`: as it is. `endpoint`: the image channels times `1 - t_image`, the semantic ones times `t_semantic`.
    A velocity leads from a state on the path straight to an end of it, `image_t + (1 - t_image) v_image` and
    `semantic_t - t_semantic v_semantic`: the products are what it adds, so their squared errors are those of picture
    and code. Where a stream is at the end that the velocity leads to, its velocity is noise that no network can know,
    and weighs nothing: the picture at t_image = 1, which half of the items of a training may hold, and the label at
    t_semantic = 0.

    Args:
        velocity: float [N, C + K, H, W].
        t: Times of the items; [N], or [N, 2] as (t_image, t_semantic), in [0, 1].
        image_channels: C, in [1, C + K).
        weighting: Which of the two.

    Returns:
        Like `velocity`; of an `endpoint` in the dtype that products with `t` have.

    Source:
        For one stream: Salimans and Ho, arXiv 2202.00512, section 4 (errors of the picture against those of v).
    """
    if weighting == "velocity":
        return velocity
    t_image, t_semantic = (t, t) if t.ndim == 1 else t.unbind(dim=1)
    factors = [(1 - t_image)[:, None], t_semantic[:, None]]
    widths = (image_channels, velocity.shape[1] - image_channels)
    factor: Tensor = torch.cat([each.expand(-1, n) for each, n in zip(factors, widths, strict=True)], dim=1)
    return velocity * factor[:, :, None, None]
