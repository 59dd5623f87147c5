import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch

from msf.checkpoints.folder import find_checkpoint, load_checkpoint, save_checkpoint
from msf.config import CodeConfig, DataConfig, ExperimentConfig, PathConfig, TaskConfig, TrainConfig, UNetConfig
from msf.network.unet import UNet

NETWORK = UNetConfig(
    base_channels=32, channel_multipliers=(1, 2), n_res_blocks=1, attention_down_rates=(2,), head_channels=32
)
TASK = TaskConfig(n_classes=3, image_channels=1, class_names=("a", "b", "ü"), is_ordinal=True)
EXPERIMENT = ExperimentConfig(
    data=DataConfig(dataset="bloodmnist", flips=True),
    code=CodeConfig(name="simplex"),
    path=PathConfig(time_coupling="independent", end_share=0.25),
    network=NETWORK,
    train=TrainConfig(learning_rate=1e-3, seed=2**62),
)


def make_network(experiment=EXPERIMENT, channels=3):
    n_times = 2 if experiment.path.time_coupling == "independent" else 1
    return UNet(experiment.network, channels, channels, n_times=n_times)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint's folder."""
    folder = tmp_path / "runs" / "first"
    save_checkpoint(folder, TASK, EXPERIMENT, make_network().state_dict())
    return folder


def replace_config(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    torch.manual_seed(0)
    network = make_network()
    save_checkpoint(tmp_path / "deep" / "folder", TASK, EXPERIMENT, network.state_dict())
    task, experiment, state_dict, fingerprint = load_checkpoint(str(tmp_path / "deep" / "folder"))
    assert (task, experiment, fingerprint) == (TASK, EXPERIMENT, None)
    assert list(state_dict) == sorted(network.state_dict())
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state_dict.items())
    make_network(experiment).load_state_dict(state_dict)


def test_the_files_are_what_others_expect(saved):
    content = json.loads((saved / "config.json").read_text())
    assert content["format"] == 1
    assert TaskConfig.from_dict(content["task"]) == TASK
    assert ExperimentConfig.from_dict(content["experiment"]) == EXPERIMENT
    assert safetensors.torch.load_file(saved / "model.safetensors").keys() == make_network().state_dict().keys()
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_stay_and_memory_formats_do_not_matter(tmp_path, dtype):
    network = make_network().to(dtype=dtype, memory_format=torch.channels_last)
    save_checkpoint(tmp_path, TASK, EXPERIMENT, network.state_dict())
    state_dict = load_checkpoint(tmp_path)[2]
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in state_dict.items())
    assert {tensor.dtype for tensor in state_dict.values()} == {dtype}


def test_views_of_one_storage_are_saved_each_on_its_own(tmp_path):
    # Flattened weights are common in optimisers and averages.
    shapes = make_network().state_dict()
    flat = torch.arange(sum(tensor.numel() for tensor in shapes.values()), dtype=torch.float32)
    pieces = flat.split([tensor.numel() for tensor in shapes.values()])
    state_dict = {name: piece.view(shapes[name].shape) for name, piece in zip(shapes, pieces, strict=True)}
    save_checkpoint(tmp_path, TASK, EXPERIMENT, state_dict)
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in load_checkpoint(tmp_path)[2].items())


def test_saving_twice_gives_the_same_bytes(tmp_path):
    state_dict = make_network().state_dict()
    for name in ("a", "b"):
        save_checkpoint(tmp_path / name, TASK, EXPERIMENT, state_dict)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_saving_again_replaces_both_files_and_keeps_others(saved):
    (saved / "training.pt").write_text("state")
    experiment = ExperimentConfig(network=NETWORK)
    save_checkpoint(saved, TASK, experiment, make_network(experiment, channels=4).state_dict())
    assert load_checkpoint(saved)[1] == experiment
    assert (saved / "training.pt").read_text() == "state"


def test_an_edited_configuration_counts(saved):
    experiment = json.loads((saved / "config.json").read_text())["experiment"]
    experiment["inference"]["n_samples"] = 99
    replace_config(saved, experiment=experiment)
    assert load_checkpoint(saved)[1].inference.n_samples == 99


def test_a_hand_written_configuration_beside_plain_weights_is_enough(tmp_path):
    content = {"format": 1, "task": TASK.to_dict(), "experiment": EXPERIMENT.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(content))
    safetensors.torch.save_file(make_network().state_dict(), tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path)[:2] == (TASK, EXPERIMENT)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    program = Path(__file__).with_name("killed_saves.py")
    result = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert outcome["violations"] == []
    # The kills fell before and after the moment that counts, so the search could have found something.
    for label in ("first event none", "first event new", "again event old", "again event new"):
        assert outcome["found"][label] >= 2


# Bad input


def test_tensors_of_another_network_are_refused_before_anything_is_written(tmp_path):
    state_dict = make_network().state_dict()
    del state_dict["time_embed_semantic.0.weight"], state_dict["time_embed_semantic.0.bias"]
    with pytest.raises(ValueError, match=r"^state_dict must hold .*; got 2 missing: time_embed_semantic"):
        save_checkpoint(tmp_path / "new", TASK, EXPERIMENT, state_dict)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"is not a checkpoint: {file} missing"):
        load_checkpoint(saved)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder with config.json and model.safetensors; got '.*nowhere'"):
        load_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config.json and model.safetensors missing"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must hold a configuration in JSON; got: Expecting"),
        ("\xff", "must hold a configuration in JSON; got: 'utf-8'"),
        ("[1]", "is not the configuration of a checkpoint: it has no field 'format'"),
        ('{"model_type": "bert"}', "is not the configuration of a checkpoint: it has no field 'format'"),
        ('{"format": 2}', "must have format 1; got 2, written by another version"),
        ('{"format": 1, "task": {}}', "must have the fields task and experiment; missing: experiment"),
    ],
)
def test_a_configuration_that_is_none_is_refused(saved, text, message):
    (saved / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"experiment": {"colour": 1}}, ValueError, r"config must be made of .*network.*; got \['colour'\]"),
        ({"experiment": {"code": {"name": "morse"}}}, ValueError, "name must be one of rgb, .*; got 'morse'"),
        ({"experiment": []}, TypeError, "config must be a mapping of fields; got list"),
        ({"task": {"n_classes": 1, "image_channels": 1}}, ValueError, "n_classes must be >= 2; got 1"),
        ({"task": {"image_channels": 1}}, TypeError, "n_classes"),
    ],
)
def test_configuration_values_are_checked(saved, changes, error, message):
    replace_config(saved, **changes)
    with pytest.raises(error, match=message):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40], lambda data: b"", lambda data: b"\xff" * 99]
)
def test_damaged_weights_are_refused(saved, damage):
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model.safetensors' must be an intact safetensors file; got: "):
        load_checkpoint(saved)


def test_an_architecture_that_does_not_fit_lists_some_tensors_of_each_kind(saved):
    experiment = EXPERIMENT.to_dict()
    experiment["network"] |= {"n_res_blocks": 2, "channel_multipliers": [1, 1], "attention_down_rates": [1]}
    replace_config(saved, experiment=experiment)
    with pytest.raises(ValueError, match=r"model\.safetensors' must hold the tensors of the network; got ") as caught:
        load_checkpoint(saved)
    text = str(caught.value)
    for kind in (" missing: input_blocks", " unexpected: input_blocks", " of another shape: "):
        assert kind in text
    assert ".weight [64, 64, 3, 3] instead of [32, 32, 3, 3], " in text
    assert text.count("input_blocks") + text.count("middle_block") + text.count("output_blocks") <= 3 * 4


def test_a_checkpoint_of_one_time_is_no_network_of_two(tmp_path):
    experiment = ExperimentConfig(network=NETWORK)
    save_checkpoint(tmp_path, TASK, experiment, make_network(experiment).state_dict())
    replace_config(tmp_path, experiment=experiment.to_dict() | {"path": {"time_coupling": "independent"}})
    with pytest.raises(ValueError, match="4 missing: time_embed_semantic"):
        load_checkpoint(tmp_path)


# The hub


def test_a_folder_is_found_without_the_hub(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert find_checkpoint(saved) == find_checkpoint(str(saved)) == saved


def test_a_hub_id_is_fetched_with_only_the_files_needed(saved, monkeypatch):
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options))
        return str(saved)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert load_checkpoint(find_checkpoint("someone/flow", revision="v1"))[0] == TASK
    files = ["config.json", "model.safetensors", "autoencoder/*"]
    assert calls == [("someone/flow", {"revision": "v1", "allow_patterns": files})]


def test_a_hub_id_without_the_hub_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="'someone/flow' is no folder here, .* pip install huggingface_hub"):
        find_checkpoint("someone/flow")


def test_a_hub_that_does_not_answer_is_one_sentence(monkeypatch):
    def snapshot_download(*_args, **_options):
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    message = r"'someone/flow' is no folder here, and the hub did not deliver it \(ConnectionError: no route\)$"
    with pytest.raises(FileNotFoundError, match=message):
        find_checkpoint("someone/flow")


@pytest.mark.parametrize("name", ["runs", "a/b/c", "/nowhere/at/all", "https://example.org/x"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(FileNotFoundError, match="checkpoint must be an existing folder or a hub id owner/name; got"):
        find_checkpoint(name)
