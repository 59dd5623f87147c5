"""The study: halves that share nothing, a ledger that resumes, tests and intervals that are what they say."""

import dataclasses
from contextlib import closing

import pytest
import torch

from msf.config import CodeConfig, DataConfig, ExperimentConfig, TrainConfig, UNetConfig
from msf.data import ImageDataset, Split, make_phantoms
from msf.pools import study
from msf.pools.classifier import ClassifierSettings, train_classifier
from msf.pools.ledger import Ledger
from msf.pools.study import CLASSICAL, MIXED, REAL, SYNTHETIC, StudySettings, halves, run_study


@pytest.mark.parametrize("seed", range(3))
def test_halves_are_disjoint_and_keep_the_shares_of_the_classes(seed):
    labels = torch.tensor([0] * 11 + [1] * 2 + [2] * 40)[torch.randperm(53)]
    first, second = halves(labels, seed)
    assert sorted(first.tolist() + second.tolist()) == list(range(53))
    assert labels[first].bincount().tolist() == [6, 1, 20]
    assert not torch.equal(first, halves(labels, seed + 1)[0])


def test_a_class_of_one_cannot_be_halved():
    with pytest.raises(ValueError, match="class 1 has 1"):
        halves(torch.tensor([0, 0, 1]), 0)


def tiny_dataset():
    arrays = make_phantoms(0, {"train": 40, "val": 15, "test": 20})
    splits = {s: Split(arrays[f"{s}_images"], arrays[f"{s}_labels"][:, 0].long()) for s in ("train", "val", "test")}
    return ImageDataset(
        name="tiny", **splits, class_names=tuple("abcde"), flips=True, is_ordinal=False, licence="", citation="",
        fingerprint="f",
    )  # fmt: skip


EXPERIMENT = ExperimentConfig(
    data=DataConfig(image_size=8),
    code=CodeConfig(name="simplex"),
    network=UNetConfig(
        base_channels=32, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=32
    ),
    train=TrainConfig(epochs=1, batch_size=16, validation_samples=1, precision="fp32"),
)
SETTINGS = StudySettings(n_seeds=2, budgets=(1, 3), per_class=4, classifier=ClassifierSettings(n_steps=2, batch_size=8))


@pytest.fixture
def experiment():
    inference = EXPERIMENT.inference
    generate = dataclasses.replace(inference.generate, n_steps=1)
    return dataclasses.replace(EXPERIMENT, inference=dataclasses.replace(inference, generate=generate))


def test_a_study_that_ends_early_goes_on_and_finds_the_same(experiment, tmp_path, monkeypatch):
    whole = run_study(tiny_dataset(), experiment, SETTINGS, tmp_path / "whole", device="cpu")
    assert len(whole) == 2 * (1 + 2 * 3)
    assert {(row["arm"], row["n_real"], row["n_synthetic"]) for row in whole} == {
        (SYNTHETIC, 0, 20), (REAL, 5, 0), (REAL, 15, 0), (CLASSICAL, 5, 0), (CLASSICAL, 15, 0), (MIXED, 5, 20),
        (MIXED, 15, 20),
    }  # fmt: skip
    assert all(len(row["correct"]) == 20 for row in whole)

    trained = []

    def counted(sources, *arguments, real=train_classifier, **options):
        if len(trained) == 9:
            trained.append("killed")
            raise KeyboardInterrupt
        trained.append(len(sources))
        return real(sources, *arguments, **options)

    monkeypatch.setattr(study, "train_classifier", counted)
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny_dataset(), experiment, SETTINGS, tmp_path / "broken", device="cpu")
    with (tmp_path / "broken" / "ledger.jsonl").open("ab") as file:
        file.write(b'{"key": "half a li')
    monkeypatch.setattr(study, "train", lambda *_, **__: pytest.fail("a finished flow was trained again"))
    assert run_study(tiny_dataset(), experiment, SETTINGS, tmp_path / "broken", device="cpu") == whole
    assert len(trained) == 14 + 1
    with pytest.raises(ValueError, match=r"made with something else \(per_class\)"):
        run_study(tiny_dataset(), experiment, dataclasses.replace(SETTINGS, per_class=5), tmp_path / "whole")
    # Fewer seeds and other budgets are parts of the same study.
    fewer = dataclasses.replace(SETTINGS, n_seeds=1, budgets=(3,))
    monkeypatch.setattr(study, "train_classifier", lambda *_, **__: pytest.fail("a finished piece was made again"))
    rows = run_study(tiny_dataset(), experiment, fewer, tmp_path / "whole", device="cpu")
    assert rows == [row for row in whole if row["seed"] == 0 and row["budget"] in (None, 3)]


def test_the_flow_sees_no_picture_of_the_classifiers(experiment, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(study, "train", lambda _, half, *__, **___: seen.append(half.train) or 1 / 0)
    dataset = tiny_dataset()
    with pytest.raises(ZeroDivisionError):
        run_study(dataset, experiment, SETTINGS, tmp_path, device="cpu")
    first, second = halves(dataset.train.labels, 0)
    assert torch.equal(seen[0].images, dataset.train.images[first])
    budget = study.first_of_each(dataset, second, 3)
    assert not set(budget.tolist()) & set(first.tolist())
    assert dataset.train.labels[budget].bincount().tolist() == [3] * 5
    assert set(study.first_of_each(dataset, second, 1).tolist()) <= set(budget.tolist())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"budgets": (5, 5)}, "ascending"),
        ({"budgets": ()}, "ascending"),
        ({"budgets": (0, 5)}, "ascending"),
        ({"n_seeds": 0}, "n_seeds"),
        ({"per_class": 2}, "per_class"),
    ],
)
def test_settings_that_are_no_study_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        StudySettings(**fields)


def test_a_ledger_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "ledger"
    with closing(Ledger(path, {"a": 1})) as ledger:
        ledger.add("x", {"value": 2})
    with closing(Ledger(path, {"a": 1})) as ledger:
        assert ledger.pieces == {"x": {"key": "x", "value": 2}}
    with pytest.raises(ValueError, match=r"made with something else \(a\)"):
        Ledger(path, {"a": 2})
    for line, words in ((b"[1]\n", "damaged at byte"), (b'{"value": 2}\n', "a line has no key")):
        path.write_bytes(b'{"a": 1}\n' + line)
        with pytest.raises(ValueError, match=words):
            Ledger(path, {"a": 1})
