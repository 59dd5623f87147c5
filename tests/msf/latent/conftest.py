"""A tiny autoencoder with random weights, and flows on its latents."""

import pytest
import torch

from msf.autoencoder import KLAutoencoder
from msf.config import (
    AutoencoderConfig,
    CodeConfig,
    DataConfig,
    ExperimentConfig,
    InferenceConfig,
    PathConfig,
    TaskConfig,
    UNetConfig,
)
from msf.medsymmflow import MedSymmFlow


def randomise(module, seed):
    """Replace all weights, of which some would be zero, by noise that keeps activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = max(1, parameter[0].numel())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.7 / fan_in**0.5))


@pytest.fixture(scope="session")
def make_autoencoder():
    """Build an autoencoder of two levels, so that 32x32 pictures have 16x16 latents."""
    diffusers = pytest.importorskip("diffusers", reason="the latent path needs diffusers")

    def make(seed=0, **changes):
        model = diffusers.AutoencoderKL(
            **{
                "down_block_types": ("DownEncoderBlock2D",) * 2,
                "up_block_types": ("UpDecoderBlock2D",) * 2,
                "block_out_channels": (16, 16),
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "latent_channels": 4,
                "scaling_factor": 0.8,
            }
            | changes
        )
        randomise(model, seed)
        return KLAutoencoder(model).fold()

    return make


@pytest.fixture(scope="session")
def autoencoder(make_autoencoder):
    return make_autoencoder()


@pytest.fixture(scope="session")
def autoencoder_folder(autoencoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    autoencoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_latent_flow(autoencoder):
    """Build flows on 16x16 latents with the smallest network and random weights."""

    def make(
        *,
        n_classes=3,
        image_channels=3,
        code="rgb",
        posterior="mode",
        time_coupling="shared",
        image_size=32,
        autoencoder=autoencoder,
        source=None,
        inference=None,
    ):
        experiment = ExperimentConfig(
            data=DataConfig(image_size=image_size),
            code=CodeConfig(name=code),
            path=PathConfig(time_coupling=time_coupling),
            network=UNetConfig(
                base_channels=32,
                channel_multipliers=(2,),
                n_res_blocks=1,
                attention_down_rates=(),
                head_channels=32,
            ),
            autoencoder=AutoencoderConfig(name="kl", posterior=posterior, source=source),
            inference=inference or InferenceConfig(),
        )
        task = TaskConfig(n_classes=n_classes, image_channels=image_channels)
        flow = MedSymmFlow(task, experiment, autoencoder=autoencoder)
        randomise(flow.network, 1)
        return flow

    return make


@pytest.fixture
def pictures():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
