"""Pools of flows on latents: the encoder as features, guidance and hidden labels of a code that is encoded."""

import dataclasses

import pytest
import torch

from msf.data import prepare_images
from msf.pools.features import feature_network
from msf.training.dropping import LabelDrop


def test_features_of_the_encoder_are_its_latents_averaged_to_four_by_four(make_latent_flow):
    flow = make_latent_flow(code="simplex")
    size = flow.config.data.image_size
    images = torch.randint(0, 256, (3, size, size, flow.task.image_channels), dtype=torch.uint8)
    network = feature_network("encoder", flow)
    latents = flow.space.encode(prepare_images(images, size, flow.task.image_channels), flow.device)
    n = latents.shape[-1] // 4
    wanted = latents.unfold(2, n, n).unfold(3, n, n).mean((4, 5)).flatten(1)
    torch.testing.assert_close(network.of(images), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("code", ["rgb", "simplex"])
def test_latent_flows_hide_labels_and_are_guided(make_latent_flow, code):
    flow = make_latent_flow(code=code)
    maps = flow.semantic_maps(torch.arange(flow.task.n_classes))
    shown, is_labelled = LabelDrop(flow, 0.999)(maps, torch.Generator().manual_seed(0))
    assert not is_labelled.any()
    torch.testing.assert_close(shown, maps.mean(0).expand_as(maps), atol=1e-6, rtol=1e-5)
    flow.config = dataclasses.replace(flow.config, train=dataclasses.replace(flow.config.train, label_drop=0.1))
    plain, guided = (flow.generate([0, 1], n_steps=2, guidance=weight) for weight in (0.0, 2.0))
    assert (plain - guided).abs().max() > 1e-4
