"""The named recipes."""

from __future__ import annotations

import dataclasses

from msf.config.experiment import (
    AutoencoderConfig,
    CodeConfig,
    DataConfig,
    ExperimentConfig,
    PathConfig,
    TrainConfig,
    UNetConfig,
)
from msf.config.settings import InferenceConfig

_PUBLISHED_28 = ExperimentConfig(
    data=DataConfig(dataset="bloodmnist", image_size=32),
    inference=InferenceConfig(classify_grid="uniform"),
)

RECIPES: dict[str, ExperimentConfig] = {
    # Minutes on two cores. Half of the items are at t = 1: with uniform times only, a one-step classifier is still at
    # the majority class after six epochs. Eight groups: with 32, every group of the first level is one channel, and
    # the norm takes away what the time embedding added there.
    "cpu-small": ExperimentConfig(
        data=DataConfig(dataset="phantoms", image_size=32),
        path=PathConfig(end_share=0.5),
        network=UNetConfig(base_channels=32, n_groups=8, n_res_blocks=1, head_channels=32),
        train=TrainConfig(epochs=12, batch_size=32, learning_rate=1e-3, ema_decay=0.99, precision="auto"),
    ),
    # Synthetic cells, a few minutes on two cores. The simplex code makes one evaluation return class probabilities.
    "demo": ExperimentConfig(
        data=DataConfig(dataset="phantoms", image_size=28),
        code=CodeConfig(name="simplex"),
        path=PathConfig(end_share=0.2),
        network=UNetConfig(
            base_channels=32, n_groups=8, channel_multipliers=(1, 2, 2), n_res_blocks=1, head_channels=32
        ),
        train=TrainConfig(epochs=10, batch_size=32, learning_rate=1e-3, ema_decay=0.99, precision="auto"),
    ),
    # A few hundred pictures on two cores, with an autoencoder of `msf train-autoencoder` (32x32 latents). A narrow
    # network, so that every picture can be seen hundreds of times. Selected by accuracy: the order of the distances
    # (the AUC) is best long before the distances themselves, and pictures, are good.
    "latent-cpu-small": ExperimentConfig(
        data=DataConfig(dataset="bloodmnist", image_size=128, flips=True),
        path=PathConfig(end_share=0.4),
        network=UNetConfig(
            base_channels=32, n_groups=8, channel_multipliers=(1, 2, 4), n_res_blocks=1, head_channels=32
        ),
        autoencoder=AutoencoderConfig(name="kl"),
        train=TrainConfig(
            epochs=260, batch_size=16, learning_rate=1.5e-3, ema_decay=0.99, precision="auto", selection="accuracy"
        ),
    ),
    "published-28": _PUBLISHED_28,
    "published-224": dataclasses.replace(
        _PUBLISHED_28,
        data=DataConfig(dataset="bloodmnist", image_size=256),
        network=UNetConfig(base_channels=128),
        autoencoder=AutoencoderConfig(name="kl", source="stabilityai/sd-vae-ft-mse"),
    ),
}
