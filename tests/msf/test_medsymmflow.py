import logging
import subprocess
import sys

import pytest
import torch

import msf
from msf.config import (
    RECIPES,
    AutoencoderConfig,
    ClassifySettings,
    CodeConfig,
    DataConfig,
    ExperimentConfig,
    InferenceConfig,
    PathConfig,
    TaskConfig,
    UNetConfig,
)
from msf.medsymmflow import MedSymmFlow
from msf.network.unet import UNet

GOLDEN_SOLVES = {
    "euler1": ("euler", 1),
    "euler5": ("euler", 5),
    "midpoint4": ("midpoint", 4),
    "heun2_4": ("heun", 4),
    # torchdiffeq's rk4 is the 3/8 rule.
    "rk4_4": ("rk4_38", 4),
}


@pytest.fixture(scope="module")
def official(golden):
    settings = golden.settings
    return MedSymmFlow.from_official(
        golden.path,
        n_classes=int(settings["n_classes"]),
        code="rgb" if settings["rgb_mask"] == "True" else "grey",
        head_channels=int(settings["num_head_channels"]),
        beta=float(settings["beta"]),
        image_size=int(settings["image_size"]),
    )


@pytest.fixture
def pictures():
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("solve", GOLDEN_SOLVES)
def test_classification_equals_the_authors_code(golden, official, solve):
    method, n_steps = GOLDEN_SOLVES[solve]
    tensors = golden.tensors
    arguments = {"n_samples": 1, "n_steps": n_steps, "method": method, "noise": tensors["classify_noise"][:, None]}
    arguments["micro_batch"] = len(tensors["image"])
    by_mean = official.classify(tensors["image"], **arguments)
    assert torch.equal(by_mean.label, tensors[f"classify_{solve}_mean"].long())
    expected = tensors[f"classify_{solve}_distance"].double()
    torch.testing.assert_close(by_mean.class_distance, expected, atol=1e-4, rtol=0)
    by_mode = official.classify(tensors["image"], **arguments, decision="pixel_votes")
    assert torch.equal(by_mode.label, tensors[f"classify_{solve}_mode"].long())


def test_the_import_report_is_kept_and_logged(golden, caplog):
    with caplog.at_level(logging.INFO, logger="msf.medsymmflow"):
        flow = MedSymmFlow.from_official(
            golden.path,
            n_classes=int(golden.settings["n_classes"]),
            code="rgb" if golden.settings["rgb_mask"] == "True" else "grey",
            head_channels=32,
            image_size=16,
        )
    assert flow.official_report is not None
    assert flow.official_report.inferred["base_channels"] == 32
    assert str(flow.official_report) in caplog.text


def test_saving_and_loading_gives_the_same_predictions_and_pictures(make_flow, pictures, tmp_path):
    flow = make_flow(code="simplex", time_coupling="independent")
    flow.save_pretrained(tmp_path / "checkpoint")
    loaded = msf.MedSymmFlow.from_pretrained(tmp_path / "checkpoint")
    assert loaded.config == flow.config
    assert loaded.task == flow.task
    assert loaded.official_report is None
    assert not loaded.network.training
    for kind in ("joint", "conditional"):
        settings = ClassifySettings(n_samples=4, n_steps=2, method="heun", keep_samples=True)
        before, after = (f.classify(pictures, settings, flow=kind) for f in (flow, loaded))
        assert torch.equal(before.sample_distance, after.sample_distance)
        before, after = (f.generate([0, 1], n_steps=2, flow=kind) for f in (flow, loaded))
        assert torch.equal(before, after)


def test_importing_the_package_does_not_import_torch():
    code = "import sys, msf; assert 'torch' not in sys.modules; msf.MedSymmFlow; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_of_the_package_is_refused_by_name():
    with pytest.raises(AttributeError, match="module 'msf' has no attribute 'MedSymFlow'"):
        _ = msf.MedSymFlow


def test_the_network_is_as_wide_as_picture_and_code(make_flow):
    flow = make_flow(n_classes=5, image_channels=3, code="one_hot")
    assert flow.network.in_channels == flow.network.out_channels == 8


def test_the_velocity_field_is_the_network_with_either_form_of_time(make_flow):
    flow = make_flow(time_coupling="independent")
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    shared = flow.velocity_field(z, 0.5)
    assert torch.equal(shared, flow.network(z, 0.5))
    torch.testing.assert_close(flow.velocity_field(z, torch.tensor([0.5, 0.5])), shared)
    torch.testing.assert_close(flow.velocity_field(z, torch.tensor([[0.5, 0.5]])), shared)
    assert not torch.allclose(flow.velocity_field(z, torch.tensor([[0.5, 0.1]])), shared, atol=1e-4)


def test_the_velocity_field_is_differentiable(make_flow):
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2), requires_grad=True)
    make_flow().velocity_field(z, 0.5).square().sum().backward()
    assert z.grad is not None
    assert z.grad.abs().sum() > 0


def test_a_bfloat16_network_keeps_a_float32_state(make_flow, pictures):
    flow = make_flow(code="simplex")
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    exact = flow.velocity_field(z, 0.5)
    reference = flow.classify(pictures, n_samples=8, n_steps=2, keep_samples=True)
    picture = flow.generate([0, 1, 2], n_steps=3)

    low = make_flow(code="simplex").to(dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16
    velocity = low.velocity_field(z, 0.5)
    assert velocity.dtype == torch.float32
    assert 0 < (velocity - exact).abs().max() < 0.05 * exact.abs().max()
    prediction = low.classify(pictures, n_samples=8, n_steps=2, keep_samples=True)
    assert prediction.sample_distance.dtype == torch.float32
    torch.testing.assert_close(prediction.sample_distance, reference.sample_distance, atol=0.05, rtol=0.02)
    assert not torch.equal(prediction.sample_distance, reference.sample_distance)
    assert low.generate([0, 1, 2], n_steps=3).dtype == torch.float32
    torch.testing.assert_close(low.generate([0, 1, 2], n_steps=3), picture, atol=0.05, rtol=0)


def test_predictions_ignore_dropout_and_leave_the_training_mode_as_it_was(make_flow, pictures):
    flow = make_flow(dropout=0.5)
    flow.network.train()
    first = flow.classify(pictures, n_samples=4, keep_samples=True).sample_distance
    assert flow.network.training
    assert torch.equal(first, flow.classify(pictures, n_samples=4, keep_samples=True).sample_distance)
    assert torch.equal(flow.generate([0, 1], n_steps=2), flow.generate([0, 1], n_steps=2))
    flow.network.eval()
    assert torch.equal(first, flow.classify(pictures, n_samples=4, keep_samples=True).sample_distance)
    assert not flow.network.training


@pytest.mark.parametrize(
    ("source", "message"), [("somewhere", "got 'somewhere'"), (None, "needs the folder or hub id")]
)
def test_an_autoencoder_that_is_not_to_be_had_is_named(source, message):
    experiment = ExperimentConfig(autoencoder=AutoencoderConfig(name="kl", source=source))
    with pytest.raises(FileNotFoundError, match=f"autoencoder .*{message}"):
        MedSymmFlow(TaskConfig(n_classes=2, image_channels=3), experiment)


def test_the_conditional_flow_is_refused_where_times_are_shared(make_flow, pictures):
    flow = make_flow()
    with pytest.raises(ValueError, match="flow 'conditional' needs a network with one time per stream.*'shared'"):
        flow.classify(pictures, flow="conditional")
    with pytest.raises(ValueError, match="flow 'conditional' needs a network with one time per stream"):
        flow.generate([0], flow="conditional")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_steps": 0}, "n_steps must be >= 1; got 0"),
        ({"method": "rk5"}, "method must be one of .*euler.*heun.*; got 'rk5'"),
        ({"flow": "marginal"}, "flow must be one of joint, conditional; got 'marginal'"),
    ],
)
def test_bad_solver_arguments_are_refused_by_both_directions(make_flow, pictures, arguments, message):
    flow = make_flow()
    with pytest.raises(ValueError, match=message):
        flow.classify(pictures, **arguments)
    with pytest.raises(ValueError, match=message):
        flow.generate([0], **arguments)


def test_the_published_recipe_builds_the_published_network():
    flow = MedSymmFlow(TaskConfig(n_classes=8, image_channels=3), RECIPES["published-28"])
    assert sum(parameter.numel() for parameter in flow.network.parameters()) == 8_955_526


def test_a_configuration_for_conditional_inference_builds_a_network_with_two_times():
    experiment = ExperimentConfig(
        data=DataConfig(image_size=8),
        code=CodeConfig(name="simplex"),
        path=PathConfig(time_coupling="independent"),
        network=UNetConfig(base_channels=32, channel_multipliers=(1,), head_channels=32, attention_down_rates=()),
        inference=InferenceConfig(flow="conditional"),
    )
    flow = MedSymmFlow(TaskConfig(n_classes=2, image_channels=1), experiment)
    assert flow.has_independent_times
    assert flow.network.n_times == 2


def test_a_number_of_heads_takes_the_place_of_the_default_head_width(tmp_path):
    config = UNetConfig(channel_multipliers=(1, 2), n_res_blocks=1, head_channels=None, n_heads=4)
    state = UNet(config, 6, 6).state_dict()
    torch.save(state, tmp_path / "model.pt")
    flow = MedSymmFlow.from_official(tmp_path / "model.pt", n_classes=8, num_heads=4)
    assert (flow.config.network.n_heads, flow.config.network.head_channels) == (4, None)


@pytest.mark.parametrize("images", [None, "a.png", [[0]]])
def test_what_is_no_batch_of_pictures_is_refused_by_its_type(make_flow, images):
    with pytest.raises(TypeError, match="images must be a torch tensor or a NumPy array; got "):
        make_flow().classify(images)


@pytest.mark.parametrize("stop", [3, "vote", object()])
def test_what_is_no_rule_to_stop_is_refused(make_flow, stop):
    with pytest.raises(TypeError, match="stop must be None or a rule such as"):
        make_flow().classify(torch.zeros(1, 1, 8, 8), value_range="signed", stop=stop)


def test_pictures_larger_than_any_are_refused_before_they_are_made(make_flow):
    with pytest.raises(ValueError, match="size must be <= 16384; got 1000000000"):
        make_flow().generate([0], n_steps=1, size=10**9)


def test_semantic_maps_take_labels_as_generate_does(make_flow):
    flow = make_flow()
    assert torch.equal(flow.semantic_maps([0, 2]), flow.semantic_maps(torch.tensor([0, 2])))
