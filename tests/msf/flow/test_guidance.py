"""Guidance: the formula on a field that is known exactly, the network that it needs, and the labels it hides."""

import dataclasses

import pytest
import torch

from msf.codes.label_codes import make_code
from msf.config import CodeConfig, ExperimentConfig, GenerateSettings, InferenceConfig, TrainConfig
from msf.flow.guidance import Guidance, GuidedVelocity
from msf.network.velocity import PlainVelocity
from msf.training.dropping import LabelDrop
from msf.training.losses import ItemShares, symmetric_loss


def toy(z, t):
    """Return an image velocity that follows the mean of the semantic channels, and a semantic one that is 1."""
    if isinstance(t, torch.Tensor):
        t = (t[:, 1] if t.ndim == 2 else t).reshape(-1, 1, 1, 1)
    image, semantic = z[:, :1], z[:, 1:]
    return torch.cat([image + semantic.mean(1, keepdim=True) + t, torch.ones_like(semantic)], dim=1)


@pytest.mark.parametrize("t", [0.25, torch.tensor(0.25), torch.tensor([0.25, 0.25]), (0.6, 0.25)])
@pytest.mark.parametrize("channels", [None, slice(0, 1), slice(1, 3)])
def test_the_velocity_is_that_of_the_formula(t, channels):
    z, null = torch.randn(2, 3, 4, 4), torch.randn(2, 4, 4)
    network = PlainVelocity(toy)
    found = GuidedVelocity(network, Guidance(1.5, null))(z, t, channels=channels)
    hidden = torch.cat([z[:, :1], (0.75 * null).expand(2, -1, -1, -1)], dim=1)
    labelled, free = network(z, t), network(hidden, t)
    wanted = torch.cat([2.5 * labelled[:, :1] - 1.5 * free[:, :1], labelled[:, 1:]], dim=1)
    torch.testing.assert_close(found, wanted if channels is None else wanted[:, channels])


def guided_flow(make_flow, **kind):
    flow = make_flow(code="simplex", **kind)
    train = dataclasses.replace(flow.config.train, label_drop=0.1)
    flow.config = dataclasses.replace(flow.config, train=train)
    return flow


@pytest.mark.parametrize("flow_name", ["joint", "conditional"])
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_guidance_changes_pictures_and_a_weight_of_nothing_does_not(make_flow, flow_name, method):
    flow = guided_flow(make_flow, time_coupling="independent")
    settings = {"n_steps": 3, "flow": flow_name, "method": method}
    plain = flow.generate([0, 1, 2], **settings)
    assert torch.equal(flow.generate([0, 1, 2], guidance=0.0, **settings), plain)
    nearly = flow.generate([0, 1, 2], guidance=1e-6, **settings)
    torch.testing.assert_close(nearly, plain, atol=1e-5, rtol=0)
    assert (flow.generate([0, 1, 2], guidance=2.0, **settings) - plain).abs().max() > 1e-3


def test_a_network_without_label_dropping_refuses_guidance(make_flow):
    with pytest.raises(ValueError, match=r"guidance needs a network .* --label-drop 0.1.* got 1.5"):
        make_flow().generate([0], guidance=1.5)
    with pytest.raises(ValueError, match="guidance must be >= 0"):
        make_flow().generate([0], guidance=-1.0)


@pytest.mark.parametrize("name", ["simplex", "one_hot", "thermometer", "rgb", "grey"])
def test_the_null_map_is_the_mean_of_the_classes(name):
    code = make_code(CodeConfig(name=name), 4)
    torch.testing.assert_close(code.null_map(2, 3), code.codes.mean(0)[:, None, None].expand(-1, 2, 3))


def test_a_mean_that_is_a_class_stands_for_no_label_nowhere():
    with pytest.raises(ValueError, match=r"label_drop needs .* 'grey' the mean of 5 classes is class 2"):
        make_code(CodeConfig(name="grey"), 5).null_map(2, 2)


def test_labels_are_hidden_with_the_stated_probability_and_nothing_else_changes(make_flow):
    flow = make_flow(code="simplex")
    maps = flow.semantic_maps(torch.arange(2000) % 3)
    shown, is_labelled = LabelDrop(flow, 0.1)(maps, torch.Generator().manual_seed(0))
    assert 150 < int((~is_labelled).sum()) < 250
    assert torch.equal(shown[is_labelled], maps[is_labelled])
    assert shown[~is_labelled].abs().max() < 1e-6  # the origin of the simplex


def test_no_share_draws_nothing(make_flow):
    flow, generator = make_flow(), torch.Generator().manual_seed(0)
    maps = flow.semantic_maps(torch.tensor([0, 1]))
    assert LabelDrop(flow, 0.0)(maps, generator) == (maps, None)
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


def test_hidden_labels_count_in_the_image_part_of_the_loss_only():
    v, target = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    is_labelled = torch.tensor([True, False, True, True])
    loss, seen = (
        symmetric_loss(v, target, 1, 0.7, ItemShares.of_batch(4, is_labelled)),
        symmetric_loss(v[is_labelled], target[is_labelled], 1, 0.7),
    )
    torch.testing.assert_close(loss.image, symmetric_loss(v, target, 1, 0.7).image)
    torch.testing.assert_close(loss.semantic, seen.semantic)
    torch.testing.assert_close(loss.total, 0.7 * loss.image + 0.3 * seen.semantic)
    assert symmetric_loss(v, target, 1, 0.7, ItemShares.of_batch(4, torch.zeros(4, dtype=torch.bool))).semantic == 0


def test_a_configuration_cannot_ask_for_guidance_without_label_dropping():
    guided = InferenceConfig(generate=GenerateSettings(guidance=1.0))
    with pytest.raises(ValueError, match="guidance needs a network trained with label_drop > 0"):
        ExperimentConfig(inference=guided)
    assert ExperimentConfig(inference=guided, train=TrainConfig(label_drop=0.1)).inference == guided
