"""First weights from another network: what is taken over, and what is said of the rest."""

import dataclasses

import pytest
import torch

from msf.config import CodeConfig, TaskConfig
from msf.medsymmflow import MedSymmFlow
from msf.training.initial import start_from
from msf.training.train import train
from tests.msf.training.tiny import tiny_dataset, tiny_experiment

TASK = TaskConfig(n_classes=5, image_channels=3)


def flow(task=TASK, *, code="simplex", seed=0, **network):
    experiment = tiny_experiment()
    experiment = dataclasses.replace(
        experiment, code=CodeConfig(name=code), network=dataclasses.replace(experiment.network, **network)
    )
    torch.manual_seed(seed)
    made = MedSymmFlow(task, experiment)
    for parameter in made.network.parameters():
        torch.nn.init.normal_(parameter)
    return made


@pytest.fixture
def source(tmp_path):
    saved = flow()
    saved.save_pretrained(tmp_path / "source")
    return str(tmp_path / "source"), saved.network.state_dict()


def test_an_equal_network_is_taken_over_whole(source):
    other = flow(seed=1)
    taken = start_from(other, source[0])
    assert not taken.image_part
    assert not taken.fresh
    assert taken.text().startswith(f"{len(source[1])} of {len(source[1])} tensors are taken over")
    assert all(torch.equal(tensor, source[1][name]) for name, tensor in other.network.state_dict().items())


def test_other_classes_and_another_code_keep_the_image_channels(source):
    other = flow(TaskConfig(n_classes=3, image_channels=3), code="one_hot", seed=1)
    before = {name: tensor.clone() for name, tensor in other.network.state_dict().items()}
    taken = start_from(other, source[0])
    after = other.network.state_dict()
    assert set(taken.image_part) == {"input_blocks.0.0.weight", "out.2.weight", "out.2.bias"}
    assert not taken.fresh
    assert "the code is one_hot of 3 classes, not simplex of 5" in taken.text()
    for name in taken.image_part:
        axis = 1 if name.startswith("input") else 0
        assert torch.equal(after[name].narrow(axis, 0, 3), source[1][name].narrow(axis, 0, 3))
        own = after[name].shape[axis] - 3
        assert torch.equal(after[name].narrow(axis, 3, own), before[name].narrow(axis, 3, own))
    assert all(torch.equal(after[name], source[1][name]) for name in taken.whole)


def test_channels_of_one_number_and_another_meaning_are_not_taken_over(source):
    other = flow(TaskConfig(n_classes=4, image_channels=3), code="one_hot", seed=1)  # 4 channels, as simplex of 5 has
    taken = start_from(other, source[0])
    assert "out.2.weight" in taken.image_part
    other = flow(TaskConfig(n_classes=5, image_channels=1), seed=1)
    taken = start_from(other, source[0])
    assert {"input_blocks.0.0.weight", "out.2.weight", "out.2.bias"} <= set(taken.fresh)
    assert "pictures have 1 channels, not 3" in taken.text()


def test_another_width_is_named_and_a_network_without_anything_in_common_is_refused(source):
    taken = start_from(flow(seed=1, n_res_blocks=2), source[0])
    assert "the other network does not have them" in taken.text()
    with pytest.raises(ValueError, match="init must name a network like this one"):
        start_from(flow(seed=1, base_channels=64), source[0])


def test_a_training_begins_with_the_weights_and_resumes_without_the_folder(source, tmp_path):
    fresh = train(tiny_experiment(), tiny_dataset(), tmp_path / "fresh", device="cpu")
    settings = tiny_experiment(init=source[0])
    tuned = train(settings, tiny_dataset(), tmp_path / "tuned", device="cpu")
    assert tuned.taken_over.startswith(f"{len(source[1])} of")
    assert tuned.history[0]["train_loss"] != fresh.history[0]["train_loss"]
    (tmp_path / "source" / "model.safetensors").unlink()
    again = train(settings, tiny_dataset(), tmp_path / "tuned", device="cpu", resume=True)
    assert again.history == tuned.history
    assert again.taken_over is None
    with pytest.raises(FileNotFoundError):
        train(settings, tiny_dataset(), tmp_path / "other", device="cpu")
