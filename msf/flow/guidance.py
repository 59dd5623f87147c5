"""Classifier-free guidance of generation: what the label adds to the velocity of the picture, taken more than once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from msf.config import ClassifySettings, GenerateSettings
from msf.flow.joint_space import JointSpace
from msf.network.velocity import Times, Velocity, as_velocity
from msf_kernels.shapes import JointState


@dataclass(frozen=True, eq=False)
class Guidance:
    """How strongly, and against what.

    Args:
        weight: w > 0.
        null_map: What stands for no label; [K, h, w], on the network's device.
    """

    weight: float
    null_map: Tensor


class GuidedVelocity(Velocity):
    """A velocity whose image channels are led away from those without a label.

    `image velocity = (1 + w) v(image_t, semantic_t) - w v(image_t, null_t)`, `null_t = (1 - t_semantic) null`; the
    semantic channels are the network's own. `null_t` is the path that the null map takes without noise, which is the
    path of a clean code under the exact field (its semantic velocity at t = 0 is minus the code).

    Args:
        network: Trained with label dropping, `msf.training.dropping.LabelDrop`.
        guidance: Weight and null map.

    Numerics:
        Two evaluations of the network where there was one.

    Source:
        Ho and Salimans, arXiv 2207.12598, equation 6, with velocities in the place of scores: both are the same affine
        function of the expected picture, so that the combination is the same.
    """

    def __init__(self, network: Velocity, guidance: Guidance) -> None:
        """Keep both."""
        self.network = as_velocity(network)
        self.guidance = guidance
        self.dtype = self.network.dtype
        self.is_batch_invariant = self.network.is_batch_invariant
        self.micro_batch = self.network.micro_batch

    @property
    def origin(self) -> Velocity:
        """The network's own."""
        return self.network.origin

    @property
    def convolution(self) -> str:
        """What convolves in the network."""
        return self.network.convolution

    def __call__(self, z: JointState, t: Times, *, channels: slice | None = None) -> JointState:
        """Return the guided velocity; see `Velocity`."""
        null = self.guidance.null_map.to(z.dtype)
        n_image = z.shape[1] - len(null)
        t_semantic = t[1] if isinstance(t, tuple) else t
        if isinstance(t_semantic, Tensor):
            t_semantic = t_semantic.to(z.dtype).reshape(-1, 1, 1, 1)
        null_t = ((1 - t_semantic) * null).expand(len(z), *null.shape)
        image = slice(0, n_image)
        free = self.network(torch.cat([z[:, image], null_t], dim=1), t, channels=image)
        labelled = self.network(z, t, channels=image if channels == image else None)
        guided = labelled[:, image] + self.guidance.weight * (labelled[:, image] - free)
        if channels == image:
            return guided
        velocity = torch.cat([guided, labelled[:, n_image:]], dim=1)
        return velocity if channels is None else velocity[:, channels]


def guided(
    network: Velocity, settings: ClassifySettings | GenerateSettings, space: JointSpace, device: torch.device
) -> Velocity:
    """Return the network as the settings want it: guided, or as it is."""
    if not isinstance(settings, GenerateSettings) or not settings.guidance:
        return network
    null_map = space.semantic_code(device).null_map(*space.semantic_shape[1:]).to(device)
    return GuidedVelocity(network, Guidance(settings.guidance, null_map))
