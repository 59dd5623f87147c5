"""What the training of an autoencoder is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from msf.autoencoder.protocol import require_divisible
from msf_kernels.checks import require_finite, require_int, require_positive

Stage = Literal["colours", "pictures", "figures"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """What is trained and how; the defaults take minutes on two cores for some hundred pictures.

    Args:
        image_size: Height and width that the pictures are resized to.
        block_channels: Channels per level, finest first; every level but the last halves the resolution.
        layers_per_block: Residual blocks per level of the encoder; the decoder has one more.
        n_groups: Groups of every normalisation.
        latent_channels: Channels of the latents.
        epochs: Passes over the training split.
        batch_size: Pictures per step.
        learning_rate: Largest learning rate.
        kl_weight: Weight of the divergence from N(0, I), in nats per latent.
        gradient_weight: Weight of the difference between picture gradients against that between values.
        colour_steps: Steps on small mosaics of random colours, before the first epoch.
        plain_share: Share of the training pictures that are replaced by one random colour. Label colours are such
            pictures, and look like nothing in the data.
        use_bf16: bfloat16 convolutions; weights and loss stay in float32.
        seed: Seed of weights, order, flips and noise.
    """

    image_size: int = 128
    block_channels: tuple[int, ...] = (32, 64, 64)
    layers_per_block: int = 1
    n_groups: int = 4
    latent_channels: int = 4
    epochs: int = 20
    batch_size: int = 4
    learning_rate: float = 5e-4
    kl_weight: float = 1e-4
    gradient_weight: float = 1.0
    colour_steps: int = 1000
    plain_share: float = 0.1
    use_bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges and combinations."""
        for name in ("image_size", "layers_per_block", "n_groups", "latent_channels", "epochs", "batch_size"):
            require_int(name, getattr(self, name), minimum=1)
        require_int("colour_steps", self.colour_steps, minimum=0)
        require_int("seed", self.seed, minimum=0, below=2**63)
        require_positive("learning_rate", self.learning_rate)
        for name in ("kl_weight", "gradient_weight"):
            require_finite(name, getattr(self, name))
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0; got {getattr(self, name)}")
        if not 0 <= self.plain_share < 1:
            raise ValueError(f"plain_share must be in [0, 1); got {self.plain_share}")
        if not self.block_channels or any(width < 1 or width % self.n_groups for width in self.block_channels):
            raise ValueError(
                f"block_channels must be positive multiples of n_groups = {self.n_groups}, one per level; "
                f"got {self.block_channels}"
            )
        require_divisible(self.image_size, self.image_size, 2 ** (len(self.block_channels) - 1))


@dataclass(frozen=True)
class AutoencoderProgress:
    """What a progress callback is told.

    Args:
        step: Optimiser steps done, of `n_steps`.
        n_steps: Steps of the stage.
        loss: Mean training loss since the last report.
        stage: `colours` (small mosaics, before the first epoch), `pictures` (the epochs), or `figures`: pictures coded
            by the trained model, which has no steps left.
        n_epochs: Epochs that have ended.
    """

    step: int
    n_steps: int
    loss: float
    stage: Stage = "pictures"
    n_epochs: int = 0
