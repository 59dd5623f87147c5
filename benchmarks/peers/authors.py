"""The published pipeline, restated from its description with public packages: fp32, NCHW, eager.

torchcfm's U-Net with the same weights, torchdiffeq's Euler loop, diffusers' decoder, and distances class by class
with a new colour tensor for each. The published classifier encodes the picture, starts from [picture ; noise] at
t = 1, integrates to t = 0, decodes the latents to colours, and compares them with the palette. It also decodes the
image latents, which nothing reads: `decodes_both`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import require
from benchmarks.peers.distances import distances_class_by_class
from benchmarks.peers.unet import Velocity


@dataclass(frozen=True)
class PublishedPipeline:
    """Classification and generation as published.

    Args:
        velocity: The network.
        palette: Colour of each class, in [-1, 1].
        autoencoder: A diffusers `AutoencoderKL`, or None for pixels.
        scaling_factor: Of its latents.
        decodes_both: Also decode the image latents in classification.
        batch: Samples evaluated at once.
    """

    velocity: Velocity
    palette: Sequence[Sequence[float]]
    autoencoder: Any = None
    scaling_factor: float = 1.0
    decodes_both: bool = False
    batch: int = 16

    def encode(self, images: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [-1, 1] to what the network sees."""
        if self.autoencoder is None:
            return images
        latents: Tensor = self.autoencoder.encode(images).latent_dist.mode() * self.scaling_factor
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Back to pictures, one at a time: a batch of 256 x 256 pictures gains nothing and needs gigabytes."""
        if self.autoencoder is None:
            return latents
        return torch.cat([self.autoencoder.decode(one[None] / self.scaling_factor).sample for one in latents])

    def distances(self, encoded: Tensor, noise: Tensor, n_steps: int = 1) -> Tensor:
        """Distances of every sample; encoded [M, C, h, w], noise [M, K, h, w] -> [M, n_classes]."""
        results = []
        for first in range(0, len(noise), self.batch):
            rows = slice(first, first + self.batch)
            end = self._integrate(torch.cat([encoded[rows], noise[rows]], dim=1), 1.0, 0.0, n_steps)
            image, semantic = end[:, : encoded.shape[1]], end[:, encoded.shape[1] :]
            if self.decodes_both:
                self.decode(image)
            results.append(distances_class_by_class(self.decode(semantic), self.palette))
        return torch.cat(results)

    def classify(self, images: Tensor, noise: Tensor, n_steps: int = 1) -> dict[str, Tensor]:
        """Label and mean distances of pictures; noise [N, S, K, h, w]."""
        n, n_samples = noise.shape[:2]
        encoded = self.encode(images).repeat_interleave(n_samples, dim=0)
        distance = self.distances(encoded, noise.flatten(0, 1), n_steps).view(n, n_samples, -1).mean(dim=1)
        return {"label": distance.argmin(dim=1), "distance": distance}

    def generate(self, semantic: Tensor, noise: Tensor, n_steps: int) -> Tensor:
        """Pictures in [0, 1] from codes [N, K, h, w] and noise [N, C, h, w]."""
        results = []
        for first in range(0, len(noise), self.batch):
            rows = slice(first, first + self.batch)
            end = self._integrate(torch.cat([noise[rows], semantic[rows]], dim=1), 0.0, 1.0, n_steps)
            results.append(self.decode(end[:, : noise.shape[1]]))
        return ((torch.cat(results) + 1) / 2).clamp(0, 1)

    def _integrate(self, z: Tensor, start: float, end: float, n_steps: int) -> Tensor:
        grid = torch.linspace(start, end, n_steps + 1, device=z.device)
        odeint = require("torchdiffeq").odeint
        state: Tensor = odeint(lambda t, z: self.velocity(z, float(t)), z, grid, method="euler")[-1]
        return state
