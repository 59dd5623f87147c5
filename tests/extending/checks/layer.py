"""What a new layer of the network must do, asked of the toy: run where it was added, not collected here."""

import logging

import torch

from msf.config import DataConfig, ExperimentConfig, TaskConfig, UNetConfig
from msf.medsymmflow import MedSymmFlow
from msf.network.layers import ChannelGain

SMALL = {
    "base_channels": 8,
    "n_groups": 4,
    "channel_multipliers": (1,),
    "n_res_blocks": 1,
    "attention_down_rates": (),
    "head_channels": 8,
}


def flow_with(**network):
    experiment = ExperimentConfig(data=DataConfig(image_size=8), network=UNetConfig(**SMALL, **network))
    return MedSymmFlow(TaskConfig(n_classes=3, image_channels=1), experiment)


def test_a_network_with_it_trains_and_then_classifies_as_the_plain_network_with_one_logged_reason(tmp_path, caplog):
    flow = flow_with(use_gain=True)
    gain = next(layer for layer in flow.network.modules() if isinstance(layer, ChannelGain))
    torch.nn.init.normal_(flow.network.out.conv.weight)
    flow.network(torch.randn(2, 4, 8, 8), 0.5).square().sum().backward()
    with torch.no_grad():
        gain.gain += gain.gain.grad.sign()
    flow.save_pretrained(tmp_path / "network")
    pictures, noise = torch.zeros(2, 8, 8, dtype=torch.uint8), torch.randn(2, 1, 3, 8, 8)
    with caplog.at_level(logging.WARNING, logger="msf"):
        loaded = MedSymmFlow.from_pretrained(tmp_path / "network")
        prediction = loaded.classify(pictures, n_samples=1, noise=noise)
        loaded.classify(pictures, n_samples=1, noise=noise)
    assert len(caplog.records) == 1
    z = torch.cat([torch.full((2, 1, 8, 8), -1.0), noise[:, 0]], dim=1)
    semantic = noise[:, 0] - flow.network.eval()(z, 1.0)[:, 1:]
    torch.testing.assert_close(
        prediction.class_distance, flow.code.distance(semantic)[0].double(), rtol=1e-5, atol=1e-5
    )


def test_networks_without_it_are_what_they_were():
    plain = flow_with()
    assert not any(isinstance(layer, ChannelGain) for layer in plain.network.modules())
