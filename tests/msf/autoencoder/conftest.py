"""Small autoencoders with random weights."""

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="needs diffusers (extra latent)")


@pytest.fixture
def make_model():
    """Return a function that builds a small diffusers autoencoder; weights depend on the seed only."""

    def make(seed=0, **changes):
        channels = changes.pop("block_out_channels", (8, 16))
        config = {
            "block_out_channels": channels,
            "down_block_types": ("DownEncoderBlock2D",) * len(channels),
            "up_block_types": ("UpDecoderBlock2D",) * len(channels),
            "norm_num_groups": 4,
            "latent_channels": 4,
            "scaling_factor": 0.7,
            **changes,
        }
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return diffusers.AutoencoderKL(**config)

    return make
