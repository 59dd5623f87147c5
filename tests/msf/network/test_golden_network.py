"""The network computes what the authors' network computes from the same weights."""

import pytest
import torch

from msf.network.unet import UNet


@pytest.fixture
def network(golden):
    channels = golden.tensors["velocity_in"].shape[1]
    network = UNet(golden.network_config, channels, channels)
    network.load_state_dict(golden.network_tensors)
    return network.eval().requires_grad_(False)


def test_velocity_equals_the_authors(golden, network):
    v = network(golden.tensors["velocity_in"], golden.tensors["velocity_t"])
    torch.testing.assert_close(v, golden.tensors["velocity_out"], atol=1e-5, rtol=0)


def test_velocity_in_channels_last_equals_the_authors(golden, network):
    network.to(memory_format=torch.channels_last)
    v = network(golden.tensors["velocity_in"].to(memory_format=torch.channels_last), golden.tensors["velocity_t"])
    torch.testing.assert_close(v, golden.tensors["velocity_out"], atol=1e-5, rtol=0)


def test_velocity_in_double_precision_equals_the_authors(golden, network):
    v = network.double()(golden.tensors["velocity_in"], golden.tensors["velocity_t"])
    assert v.dtype == torch.float64
    torch.testing.assert_close(v, golden.tensors["velocity_out"].double(), atol=1e-5, rtol=0)
