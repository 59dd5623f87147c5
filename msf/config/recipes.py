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

# As published for Pneumonia, Blood, Derma and Retina, which differ in their flips: those come with the data.
_PUBLISHED_28 = ExperimentConfig(
    data=DataConfig(dataset="bloodmnist", image_size=32),
    code=CodeConfig(name="rgb"),
    train=TrainConfig(gradient_clip=0.0),
    inference=InferenceConfig(classify_grid="uniform"),
)
# Eight groups: with 32, every group of the first level is one channel, and the norm takes away what the time embedding
# added there.
_SMALL = UNetConfig(base_channels=32, n_groups=8, channel_multipliers=(1, 2, 2), n_res_blocks=1, head_channels=32)
_AVERAGED = TrainConfig(
    epochs=None, steps=2000, batch_size=32, learning_rate=1e-3, ema_decay=None, ema_length=0.05, precision="auto"
)

RECIPES: dict[str, ExperimentConfig] = {
    # A classifier with probabilities, and pictures of every class, from some hundreds of pictures, in minutes on two
    # cores: docs/decisions/0032-recipes.md.
    "recommended": ExperimentConfig(
        data=DataConfig(dataset="phantoms", image_size=28),
        code=CodeConfig(name="auto"),
        path=PathConfig(time_coupling="independent", end_share=0.6, time_sampling="cubic", loss_weighting="endpoint"),
        network=dataclasses.replace(_SMALL, dropout=0.1),
        train=dataclasses.replace(_AVERAGED, label_drop=0.1, selection="brier"),
        inference=InferenceConfig(flow="conditional"),
    ),
    # Half of the items are at t = 1: with uniform times only, a one-step classifier is still at the majority class
    # after six epochs.
    "cpu-small": ExperimentConfig(
        data=DataConfig(dataset="phantoms", image_size=32),
        code=CodeConfig(name="auto"),
        path=PathConfig(end_share=0.5),
        network=dataclasses.replace(_SMALL, channel_multipliers=(1, 2, 2, 2)),
        train=_AVERAGED,
    ),
    # Synthetic cells, a few minutes on two cores.
    "demo": ExperimentConfig(
        data=DataConfig(dataset="phantoms", image_size=28),
        code=CodeConfig(name="auto"),
        path=PathConfig(end_share=0.2),
        network=_SMALL,
        train=dataclasses.replace(_AVERAGED, steps=940),
    ),
    # A few hundred pictures on two cores, with an autoencoder of `msf train-autoencoder` (32x32 latents). A narrow
    # network, so that every picture can be seen hundreds of times. Selected by accuracy: the order of the distances
    # (the AUC) is best long before the distances themselves, and pictures, are good.
    "latent-cpu-small": ExperimentConfig(
        data=DataConfig(dataset="bloodmnist", image_size=128, flips=True),
        code=CodeConfig(name="auto"),
        path=PathConfig(end_share=0.4),
        network=dataclasses.replace(_SMALL, channel_multipliers=(1, 2, 4)),
        autoencoder=AutoencoderConfig(name="kl"),
        train=dataclasses.replace(_AVERAGED, steps=3120, batch_size=16, learning_rate=1.5e-3, selection="accuracy"),
    ),
    "published-28": _PUBLISHED_28,
    "published-224": dataclasses.replace(
        _PUBLISHED_28,
        data=DataConfig(dataset="bloodmnist", image_size=256),
        network=UNetConfig(base_channels=128),
        autoencoder=AutoencoderConfig(name="kl", source="stabilityai/sd-vae-ft-mse"),
    ),
}
