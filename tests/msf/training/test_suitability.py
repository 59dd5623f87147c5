import dataclasses
import logging

import pytest
import torch

from msf.checkpoints.folder import load_checkpoint
from msf.codes.label_codes import make_code
from msf.config import CodeConfig, PathConfig, TrainConfig
from msf.data import Split
from msf.training.suitability import require_suitable, warn_of_dependent_code
from msf.training.train import train
from tests.msf.training.test_train import tiny_dataset, tiny_experiment


def part(split, rows):
    return Split(split.images[rows], split.labels[rows])


def without(split, label):
    return part(split, split.labels != label)


@pytest.mark.parametrize(
    ("name", "n_classes", "rank"),
    [
        ("rgb", 2, 1),
        ("rgb", 3, 2),
        ("rgb", 4, 1),  # four greys
        ("rgb", 5, 2),  # the last four of them are on a line
        ("rgb", 7, 3),
        ("rgb", 8, 3),
        ("grey", 2, 1),
        ("grey", 5, 1),
        ("simplex", 8, 7),
        ("one_hot", 8, 7),
        ("thermometer", 5, 4),
    ],
)
def test_a_code_is_warned_of_where_its_points_are_affinely_dependent(caplog, name, n_classes, rank):
    code = make_code(CodeConfig(name=name), n_classes)
    assert code.affine_rank == rank
    assert code.is_affinely_independent == (rank == n_classes - 1)
    warn_of_dependent_code(code)
    if code.is_affinely_independent:
        assert not caplog.records
    else:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        wanted = f"code {name!r} puts {n_classes} classes on points that span {rank} dimensions, and {n_classes - 1}"
        assert wanted in record.getMessage()


@pytest.mark.parametrize(("code", "is_warned"), [("rgb", True), ("grey", True), ("auto", False)])
def test_a_training_warns_before_its_first_step(tmp_path, caplog, code, is_warned):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_experiment(code=code), tiny_dataset(), tmp_path, device="cpu", progress=stop)
    assert ("--code auto has no such trouble" in caplog.text) == is_warned


def test_a_class_without_training_pictures_is_named_before_any_work(tmp_path):
    dataset = tiny_dataset()
    lacking = dataclasses.replace(dataset, train=without(without(dataset.train, 3), 1))
    with pytest.raises(ValueError, match=r"every class of 'tiny' must have a training picture; .* of 1 \(b\), 3 \(d\)"):
        train(tiny_experiment(), lacking, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_class_that_only_the_validation_lacks_is_left_out_of_its_figures(tmp_path):
    dataset = tiny_dataset()
    result = train(
        tiny_experiment(epochs=1), dataclasses.replace(dataset, val=without(dataset.val, 3)), tmp_path, device="cpu"
    )
    assert 0 <= result.best_value <= 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_split_is_named(split):
    dataset = tiny_dataset()
    none = part(dataset.split(split), slice(0, 0))
    with pytest.raises(ValueError, match=f"must have pictures in its split {split}; it has none"):
        require_suitable(dataclasses.replace(dataset, **{split: none}), TrainConfig())


def test_a_validation_of_one_picture_selects_by_accuracy_and_says_so_otherwise(tmp_path):
    dataset = tiny_dataset()
    single = dataclasses.replace(dataset, val=part(dataset.val, slice(0, 1)))
    with pytest.raises(ValueError, match="selection must be accuracy, .* where the val split holds a single class"):
        train(tiny_experiment(), single, tmp_path / "a", device="cpu")
    result = train(tiny_experiment(selection="accuracy", epochs=2), single, tmp_path / "b", device="cpu")
    assert [row["auc_macro_ovr"] for row in result.history] == [None, None]
    assert result.best_value in (0.0, 1.0)


@pytest.mark.parametrize("batch_size", [39, 40, 1000])
def test_any_batch_size_trains_with_a_balanced_order_and_own_times(tmp_path, batch_size):
    path = PathConfig(time_coupling="independent", end_share=0.5, time_sampling="cubic", loss_weighting="endpoint")
    experiment = tiny_experiment(path=path, class_balanced=True, batch_size=batch_size, epochs=None, steps=2)
    train(experiment, tiny_dataset(), tmp_path, device="cpu")
    assert all(torch.isfinite(tensor).all() for tensor in load_checkpoint(tmp_path).state_dict.values())
