"""Pixel space as an autoencoder: latents are the pictures."""

from __future__ import annotations

import hashlib
import os
from typing import Self

import torch
from torch import Tensor

from msf.autoencoder.protocol import LatentPosterior, require_divisible
from msf_kernels.checks import require_int, require_tensor
from msf_kernels.shapes import ImageBatch


class PixelIdentity:
    """Latents that are the pictures themselves, known exactly (std 0).

    Args:
        channels: Channels of the pictures, >= 1.
    """

    down_factor = 1
    scaling_factor = 1.0
    hub_id = None

    def __init__(self, channels: int) -> None:
        """Keep the number of channels as `latent_channels`."""
        require_int("channels", channels, 1)
        self.latent_channels = channels
        self.fingerprint = hashlib.sha256(f"pixels, {channels} channels".encode()).hexdigest()

    def __repr__(self) -> str:
        """Return the call that makes an equal object."""
        return f"PixelIdentity(channels={self.latent_channels})"

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (channels, height, width).

        Raises:
            ValueError: A size below 1.
        """
        require_divisible(height, width, 1)
        return self.latent_channels, height, width

    def encode(self, images: ImageBatch) -> LatentPosterior:
        """Return the pictures, with std 0."""
        images = self._checked("images", images)
        return LatentPosterior(images, torch.zeros_like(images))

    def decode(self, latents: Tensor, *, memory_bytes: int | None = None) -> ImageBatch:
        """Return the latents, whatever the memory."""
        return self._checked("latents", latents)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write nothing: there are no weights."""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Return itself: there are no weights."""
        return self

    def _checked(self, name: str, values: Tensor) -> Tensor:
        require_tensor(name, values, "[N, C, H, W]")
        if values.shape[1] != self.latent_channels:
            raise ValueError(f"{name} must have {self.latent_channels} channel(s); got shape {list(values.shape)}")
        return values.detach().float().contiguous()
