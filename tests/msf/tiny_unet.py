"""Velocity networks small enough for tests, one for every option of the configuration."""

import dataclasses

import torch

from msf.config import UNetConfig
from msf.network.unet import UNet

TINY = UNetConfig(
    base_channels=32, channel_multipliers=(1, 2), n_res_blocks=1, attention_down_rates=(2,), head_channels=32
)
VARIANTS = {
    "plain": {},
    "new order": {"qkv_order": "new"},
    "heads by number": {"head_channels": None, "n_heads": 4},
    "scale and shift": {"use_scale_shift_norm": True},
    "residual resampling": {"use_residual_updown": True},
    "all of it": {"qkv_order": "new", "use_scale_shift_norm": True, "use_residual_updown": True},
    "attention everywhere": {"attention_down_rates": (1, 2)},
    "attention in the middle only": {"attention_down_rates": ()},
    "odd multipliers": {"channel_multipliers": (1, 3, 2), "attention_down_rates": (4,), "n_res_blocks": 2},
    "one level": {"channel_multipliers": (2,), "attention_down_rates": ()},
    # The concatenated input of the upper level is as wide as its output: the shortcut is the input itself.
    "wide above": {"channel_multipliers": (3, 1)},
    "few groups": {"n_groups": 8},
    "dropout": {"dropout": 0.5},
}


def with_random_weights(network, seed=0):
    """Replace the zeros in which some layers start, so that every layer shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def tiny(n_times=1, channels=4, **changes):
    torch.manual_seed(0)
    return with_random_weights(UNet(dataclasses.replace(TINY, **changes), channels, channels, n_times=n_times))


def state(n=3, channels=4, size=8, seed=0):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))
