"""What the method asks of an autoencoder, whichever it is."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from msf_kernels.shapes import ImageBatch


class LatentPosterior(NamedTuple):
    """The normal distribution that an encoder gives for each picture, in the units that the flow works in.

    Args:
        mean: float32 [N, L, h, w], scaled.
        std: float32 [N, L, h, w], scaled, >= 0.
    """

    mean: Tensor
    std: Tensor

    def mode(self) -> Tensor:
        """Return the most likely latents, [N, L, h, w]."""
        return self.mean

    def sample(self, source: torch.Generator | Tensor) -> Tensor:
        """Return `mean + std * noise`, [N, L, h, w].

        Args:
            source: Standard normal noise of that shape, or a generator that it is drawn from; the generator may live
                on another device than the latents.

        Raises:
            ValueError: Noise of another shape.
        """
        if isinstance(source, torch.Generator):
            noise = torch.randn(self.mean.shape, generator=source, device=source.device)
        elif source.shape == self.mean.shape:
            noise = source
        else:
            raise ValueError(
                f"noise must have the shape of the latents, {list(self.mean.shape)}; got {list(source.shape)}"
            )
        return self.mean + self.std * noise.to(self.mean)


class Autoencoder(Protocol):
    """Pictures to latents and back: fixed weights, no gradients, float32 in and out.

    Latents are scaled: the flow sees about unit variance, and `decode` takes what `encode` gave. No method depends on
    the other pictures of a batch, beyond rounding.
    """

    @property
    def latent_channels(self) -> int:
        """Channels L of the latents."""

    @property
    def down_factor(self) -> int:
        """Pixels per latent along an axis; 1 where latents are pixels."""

    @property
    def scaling_factor(self) -> float:
        """What the encoder's own latents are multiplied by."""

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of architecture, weights and scaling; the same on every device and in every dtype."""

    @property
    def hub_id(self) -> str | None:
        """Repository of the hub that it came from; None: from files here, or from code."""

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the files that it is loaded from; one that has none writes nothing."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (L, h, w) for pictures of a size.

        Raises:
            ValueError: A size that cannot be encoded; the text says which can.
        """

    def encode(self, images: ImageBatch) -> LatentPosterior:
        """Return the posterior of pictures, float [N, C, H, W] in [-1, 1]."""

    def decode(self, latents: Tensor, *, memory_bytes: int | None = None) -> ImageBatch:
        """Return pictures, float32 [N, C, H, W], not clamped, from scaled latents [N, L, h, w].

        Args:
            latents: What `encode` gave.
            memory_bytes: What the maps on the way may need, estimated, where there are any; default: its own choice.
        """

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move the weights, change their dtype, or both; return the same object."""


def require_divisible(height: int, width: int, down_factor: int) -> None:
    """Check a picture's size.

    Raises:
        ValueError: Not positive, or no multiple of the factor; the text names sizes nearby that are.
    """
    for name, size in (("height", height), ("width", width)):
        if size < 1 or size % down_factor:
            below = max(size // down_factor, 1) * down_factor
            raise ValueError(
                f"{name} must be a positive multiple of {down_factor}, such as {below} or {below + down_factor}; "
                f"got {size}"
            )
