"""The velocity fields beside the joint one, which is the network itself: one stream flows while the other is held.

A field is `field(z, t) -> v` as the solvers integrate it: `t` is the time of whatever moves. A velocity has the dtype
that the network computes in; the solver adds it to a float32 state. Times are never rounded below float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from msf_kernels.shapes import ImageBatch, JointState, SemanticBatch, TimeBatch

Time = float | TimeBatch
VelocityField = Callable[[Tensor, Time], Tensor]


class VelocityNetwork(Protocol):
    """What the fields ask of a network; see `msf.unet.UNet.forward` for the forms of `t`."""

    def __call__(self, z: JointState, t: Time, /) -> JointState:
        """Return the velocity at the joint state z and time t."""
        ...


def semantic_field(network: VelocityNetwork, image: ImageBatch) -> VelocityField:
    """Return the field of the semantic stream while the picture is held at t_image = 1.

    `v(semantic, t) = network([image ; semantic], (1, t))`, semantic channels. Its flow from noise (t = 1) to t = 0
    samples p(code | image) exactly if the network is exact; the joint flow does not.

    Args:
        network: Network with one time per stream.
        image: Clean pictures, [N, C, H, W] in [-1, 1].

    Returns:
        `field(semantic, t)`, semantic [N, K, H, W].

    Source:
        One time per stream: UniDiffuser, arXiv 2303.06555.
    """
    channels = image.shape[1]

    def field(semantic: SemanticBatch, t: Time) -> SemanticBatch:
        moving = _as_rows(t, semantic)
        times = torch.stack([torch.ones_like(moving), moving], dim=1)  # [1|N, 2]
        return network(torch.cat([image.to(semantic.dtype), semantic], dim=1), times)[:, channels:]

    return field


def image_field(network: VelocityNetwork, semantic: SemanticBatch) -> VelocityField:
    """Return the field of the image stream while the code is held at t_semantic = 0.

    `v(image, t) = network([image ; semantic], (t, 0))`, image channels. Its flow from noise (t = 0) to t = 1 samples
    p(image | code) exactly if the network is exact.

    Args:
        network: Network with one time per stream.
        semantic: Codes of the labels, [N, K, H, W].

    Returns:
        `field(image, t)`, image [N, C, H, W].
    """

    def field(image: ImageBatch, t: Time) -> ImageBatch:
        moving = _as_rows(t, image)
        times = torch.stack([moving, torch.zeros_like(moving)], dim=1)  # [1|N, 2]
        return network(torch.cat([image, semantic.to(image.dtype)], dim=1), times)[:, : image.shape[1]]

    return field


def _as_rows(t: Time, state: Tensor) -> Tensor:
    """Return the time as [1] or [N] on the state's device; a number is filled in there, never copied from the host."""
    dtype = torch.promote_types(state.dtype, torch.float32)
    if isinstance(t, Tensor):
        return t.reshape(-1).to(state.device, dtype)
    return state.new_full((1,), t, dtype=dtype)
