import argparse
import dataclasses
import random

import pytest
import safetensors.torch
import torch

from msf.checkpoints.official import load_official
from msf.config import UNetConfig
from msf.network.unet import UNet

SMALL = UNetConfig(
    base_channels=32, channel_multipliers=(1, 2), n_res_blocks=1, attention_down_rates=(2,), head_channels=32
)


def random_config(seed):
    """Draw any architecture with narrow layers; one level has no up-sampling that could be residual."""
    draw = random.Random(seed)
    n_levels = draw.randint(1, 4)
    heads = draw.choice([{"head_channels": 32}, {"head_channels": 16}, {"head_channels": None, "n_heads": 2}])
    return UNetConfig(
        base_channels=32,
        channel_multipliers=tuple(draw.randint(1, 3) for _ in range(n_levels)),
        n_res_blocks=draw.randint(1, 3),
        attention_down_rates=tuple(2**level for level in range(n_levels) if draw.random() < 0.4),
        qkv_order=draw.choice(["legacy", "new"]),
        use_scale_shift_norm=draw.random() < 0.5,
        use_residual_updown=n_levels > 1 and draw.random() < 0.5,
        **heads,
    )


def zeros_like_network(config, channels):
    with torch.device("meta"):
        shapes = UNet(config, channels, channels).state_dict()
    return {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}


@pytest.fixture
def write(tmp_path):
    def write(content, name="checkpoint.pt"):
        path = tmp_path / name
        if name.endswith(".safetensors"):
            safetensors.torch.save_file(content, path)
        else:
            torch.save(content, path)
        return path

    return write


def load_small(path, **changes):
    return load_official(path, **({"n_classes": 8, "head_channels": 32} | changes))


@pytest.mark.parametrize("seed", range(40))
def test_any_architecture_is_read_back_from_its_tensors(write, seed):
    config = random_config(seed)
    tensors = zeros_like_network(config, 6)
    path = write(tensors, "any.safetensors")
    _, experiment, state_dict, _ = load_official(
        path,
        n_classes=8,
        head_channels=config.head_channels,
        num_heads=config.n_heads,
        qkv_order=config.qkv_order,
        image_size=config.size_multiple * 4,
    )
    assert experiment.network == config
    assert state_dict.keys() == tensors.keys()


@pytest.mark.parametrize(
    ("base_channels", "channels", "space", "image_size"), [(64, 6, "pixel", 32), (128, 8, "latent", 256)]
)
def test_the_published_layouts_are_read_back(write, base_channels, channels, space, image_size):
    tensors = zeros_like_network(UNetConfig(base_channels=base_channels), channels)
    assert len(tensors) == 304
    task, experiment, _, report = load_official(write(tensors), n_classes=8)
    assert experiment.network == UNetConfig(base_channels=base_channels)
    assert experiment.data.image_size == image_size
    assert experiment.autoencoder.name == ("kl" if space == "latent" else "identity")
    assert (task.n_classes, task.image_channels) == (8, 3)
    assert report.inferred["space"] == space
    assert experiment.inference.classify.grid == "uniform", "several steps are the authors'"


def test_parity_files_give_the_network_that_computed_them(golden):
    settings = golden.settings
    code = "rgb" if settings["rgb_mask"] == "True" else "grey"
    task, experiment, state_dict, report = load_official(
        golden.path,
        n_classes=int(settings["n_classes"]),
        code=code,
        head_channels=int(settings["num_head_channels"]),
        image_size=int(settings["image_size"]),
        beta=float(settings["beta"]),
    )
    assert experiment.network == golden.network_config
    assert (experiment.code.name, experiment.code.beta) == (code, 4.0)
    assert (task.n_classes, task.image_channels) == (int(settings["n_classes"]), int(settings["image_channels"]))
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in golden.network_tensors.items())
    assert "velocity_in" in report.ignored
    channels = task.image_channels + (3 if code == "rgb" else 1)
    network = UNet(experiment.network, channels, channels)
    network.load_state_dict(state_dict)
    with torch.no_grad():
        v = network(golden.tensors["velocity_in"], golden.tensors["velocity_t"])
    torch.testing.assert_close(v, golden.tensors["velocity_out"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("channels", "code", "space", "image_channels"),
    [
        (4, "rgb", "pixel", 1),
        (6, "rgb", "pixel", 3),
        (8, "rgb", "latent", 3),
        (2, "grey", "pixel", 1),
        (4, "grey", "pixel", 3),
    ],
)
def test_channels_follow_from_the_file_and_the_code(write, channels, code, space, image_channels):
    path = write(zeros_like_network(SMALL, channels))
    task, experiment, _, report = load_small(path, code=code)
    assert task.image_channels == image_channels
    assert experiment.code.name == code
    assert (report.inferred["channels"], report.inferred["space"]) == (channels, space)


def test_grey_pictures_of_a_latent_model_are_said_by_the_caller(write):
    task, _, _, report = load_small(write(zeros_like_network(SMALL, 8)), image_channels=1)
    assert task.image_channels == 1
    assert report.assumed["image_channels"] == 1


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: tensors,
        lambda tensors: {f"model.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {"state_dict": tensors, "epoch": 7, "loss": torch.zeros(3)},
        lambda tensors: {"ema": {"model": tensors}, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    ],
    ids=["bare", "prefix", "two prefixes", "inside a dictionary", "deeper"],
)
def test_the_state_dict_is_found_wherever_it_lies(write, wrap):
    tensors = zeros_like_network(SMALL, 6)
    _, experiment, state_dict, _ = load_small(write(wrap(tensors)))
    assert experiment.network == SMALL
    assert state_dict.keys() == tensors.keys()


def test_of_several_networks_the_caller_chooses_one(write):
    tensors = zeros_like_network(SMALL, 6)
    path = write({"model": tensors, "ema": {name: tensor + 1 for name, tensor in tensors.items()}})
    with pytest.raises(ValueError, match=r"^prefix must be given, .*; one of \['model\.', 'ema\.'\]"):
        load_small(path)
    with pytest.raises(ValueError, match=r"^prefix must be one of \['model\.', 'ema\.'\] in .*; got 'net\.'"):
        load_small(path, prefix="net.")
    _, _, state_dict, report = load_small(path, prefix="ema.")
    assert all((tensor == 1).all() for tensor in state_dict.values())
    assert len(report.ignored) == len(tensors)


def test_half_precision_weights_become_fp32(write):
    tensors = {name: tensor.half() + 0.5 for name, tensor in zeros_like_network(SMALL, 6).items()}
    state_dict = load_small(write(tensors))[2]
    assert all(tensor.dtype == torch.float32 and (tensor == 0.5).all() for tensor in state_dict.values())


def test_the_report_says_what_was_read_and_what_was_assumed(write):
    report = load_official(write({"model": zeros_like_network(UNetConfig(), 6), "x": torch.zeros(1)}), n_classes=8)[3]
    lines = str(report).splitlines()
    assert "inferred: base_channels = 64" in lines
    assert "inferred: channel_multipliers = (1, 2, 2, 2)" in lines
    assert "inferred: attention_down_rates = (2,)" in lines
    assert "inferred: image_channels = 3" in lines
    assert "assumed (not in the file): head_channels = 64" in lines
    assert "assumed (not in the file): qkv_order = legacy" in lines
    assert "assumed (not in the file): code = rgb" in lines
    assert "ignored: 1 other tensors, such as x" in lines
    assert "None" not in str(report)


# Bad input


class Payload:
    """An object whose unpickling would run code."""

    def __reduce__(self):
        return (print, ("code of a checkpoint has run",))


@pytest.mark.parametrize("extra", [Payload(), argparse.Namespace(beta=4.0)], ids=["code", "settings"])
def test_a_pickle_with_more_than_tensors_is_refused_without_running_it(write, capsys, extra):
    path = write({"state_dict": zeros_like_network(SMALL, 6), "args": extra})
    with pytest.raises(ValueError, match=r"^'.*checkpoint.pt' must hold tensors, dictionaries and plain values only"):
        load_small(path)
    assert "has run" not in capsys.readouterr().out


def test_a_whole_pickled_module_is_refused(write):
    with pytest.raises(ValueError, match="save its state dict alone"):
        load_small(write(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("data", [b"", b"no checkpoint at all", b"PK\x03\x04 half a zip", b"\x80\x02"])
def test_a_damaged_file_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}' must (be|hold) "):
        load_small(tmp_path / name)


def test_a_truncated_file_is_refused(write):
    path = write(zeros_like_network(SMALL, 6))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"must be a file of torch.save"):
        load_small(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be an existing checkpoint file; got '.*nowhere.pt'"):
        load_small(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("content", [{"conv.weight": torch.zeros(3)}, {}, torch.zeros(3), [1, 2]])
def test_other_models_are_refused(write, content):
    with pytest.raises(ValueError, match="must hold a U-Net of the ADM layout; it has no tensor input_blocks"):
        load_small(write(content))


@pytest.mark.parametrize("name", ["time_embed.0.weight", "input_blocks.1.0.out_layers.3.weight", "out.2.weight"])
def test_a_missing_tensor_is_named(write, name):
    tensors = zeros_like_network(SMALL, 6)
    del tensors[name]
    with pytest.raises(ValueError, match=f"checkpoint.pt' must hold .*{name}"):
        load_small(write(tensors))


def test_no_damaged_tensor_goes_unnoticed(write):
    tensors = zeros_like_network(SMALL, 6)
    for i, name in enumerate(tensors):
        damaged = torch.zeros(()) if i % 2 else torch.zeros(5, 7, 1, 1, 1)
        path = write(tensors | {name: damaged}, "damaged.safetensors")
        with pytest.raises(ValueError, match="damaged.safetensors' must"):
            load_small(path)


def test_tensors_that_no_configuration_explains_are_named(write):
    with pytest.raises(ValueError, match=r"1 unexpected: label_emb.weight"):
        load_small(write(zeros_like_network(SMALL, 6) | {"label_emb.weight": torch.zeros(8, 128)}))
    with pytest.raises(ValueError, match=r"output stages .* are none"):
        load_small(write(zeros_like_network(SMALL, 6) | {"output_blocks.4.0.in_layers.0.weight": torch.zeros(64)}))


def test_a_network_with_other_outputs_than_inputs_is_refused(write):
    with torch.device("meta"):
        shapes = UNet(SMALL, 6, 3).state_dict()
    with pytest.raises(
        ValueError, match=r"2 of another shape: out.2.weight \[3, 32, 3, 3\] instead of \[6, 32, 3, 3\]"
    ):
        load_small(write({name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}))


@pytest.mark.parametrize(
    ("channels", "changes", "message"),
    [
        (6, {"code": "grey"}, r"for code 'grey': 2 \(pictures of 1\), 4 \(pictures of 3\); got 6"),
        (8, {"code": "grey"}, r"for code 'grey': 2 \(pictures of 1\), 4 \(pictures of 3\); got 8"),
        (2, {}, r"for code 'rgb': 4 \(pictures of 1\), 6 \(pictures of 3\), 8 \(latents\); got 2"),
        (6, {"image_channels": 1}, "image_channels must be 3 for 6 channels with code 'rgb'; got 1"),
        (8, {"image_channels": 2}, "image_channels must be 1 or 3; got 2"),
        (6, {"n_classes": 65}, r"n_classes must be in \[2, 64\]; got 65"),
        (6, {"n_classes": 1}, r"n_classes must be in \[2, 64\]; got 1|n_classes must be >= 2; got 1"),
        (6, {"code": "simplex"}, "code must be rgb or grey, .*; got 'simplex'"),
        (6, {"num_heads": 4}, "exactly one of head_channels and num_heads .*; got head_channels=32, num_heads=4"),
        (6, {"head_channels": None}, "exactly one of .*; got head_channels=None, num_heads=None"),
        (6, {"head_channels": 48}, "head_channels must divide the 64 channels under attention; got 48"),
        (6, {"qkv_order": "old"}, "qkv_order must be one of legacy, new; got 'old'"),
        (6, {"beta": -1.0}, "beta must be >= 0; got -1.0"),
        (6, {"image_size": 15}, "image_size must be a multiple of 2 for 2 network levels; got 15"),
    ],
)
def test_contradictions_are_named(write, channels, changes, message):
    path = write(zeros_like_network(SMALL, channels))
    with pytest.raises(ValueError, match=message):
        load_small(path, **changes)


def test_a_default_head_width_that_does_not_fit_is_named(write):
    config = dataclasses.replace(SMALL, channel_multipliers=(1, 3))
    with pytest.raises(ValueError, match="head_channels must divide the 96 channels under attention; got 64"):
        load_official(write(zeros_like_network(config, 6)), n_classes=8)
