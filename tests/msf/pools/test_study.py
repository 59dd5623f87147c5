"""The study: halves that share nothing, a ledger that resumes, tests and intervals that are what they say."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from msf.config import CodeConfig, DataConfig, ExperimentConfig, TrainConfig, UNetConfig
from msf.data import ImageDataset, Split, make_phantoms
from msf.pools import study
from msf.pools.classifier import Classifier, ClassifierSettings, augmented, train_classifier
from msf.pools.ledger import Ledger
from msf.pools.paired import balanced_accuracy, compare, holm, interval
from msf.pools.study import ARMS, CLASSICAL, MIXED, REAL, SYNTHETIC, StudySettings, halves, run_study
from msf.pools.study_report import as_markdown, study_figure, summarise, verdict


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
    with pytest.raises(ValueError, match="another study .another per_class"):
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
    Ledger(path, {"a": 1}).add("x", {"value": 2})
    assert Ledger(path, {"a": 1}).pieces == {"x": {"key": "x", "value": 2}}
    with pytest.raises(ValueError, match="another a"):
        Ledger(path, {"a": 2})
    path.write_bytes(path.read_bytes() + b"[1]\n")
    with pytest.raises(ValueError, match="damaged"):
        Ledger(path, {"a": 1})


def test_the_sign_flip_test_is_exact_where_all_signs_can_be_counted():
    labels = np.array([0] * 4 + [1] * 4)
    first, second = np.ones(8), np.array([0.0] * 4 + [1.0] * 4)
    found = compare(first, second, labels, seed=0)
    assert found.difference == pytest.approx(0.5)
    assert found.p == pytest.approx(2 / 2**4, abs=0.02)  # all four signs alike
    assert (found.low, found.high) == (0.5, 0.5)
    assert compare(first, first, labels, seed=0).p == 1


def test_equal_classifiers_are_called_different_as_rarely_as_the_level_says():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    p = [
        compare(*(generator.random((2, 60)) < 0.7).astype(float), labels, seed=n).p for n in range(100)
    ]  # fmt: skip
    assert np.mean(np.array(p) <= 0.1) <= 0.1 + 3 * math.sqrt(0.09 / 100)


def test_intervals_hold_the_balanced_accuracy_and_shrink_with_pictures():
    generator = np.random.default_rng(0)
    widths = []
    for n in (100, 1600):
        labels = np.arange(n) % 4
        correct = (generator.random(n) < 0.8).astype(float)
        low, high = interval(correct, labels, seed=0)
        assert low < balanced_accuracy(correct, labels) < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.25)


def test_balanced_accuracy_and_holm_by_hand():
    assert balanced_accuracy(np.array([1.0, 0, 1, 1]), np.array([0, 0, 0, 2])) == pytest.approx((2 / 3 + 1) / 2)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def rows_of(shares, n=200, budgets=(5, 20)):
    generator = np.random.default_rng(1)
    cells = [(arm, budget) for arm in ARMS for budget in ([None] if arm == SYNTHETIC else budgets)]
    return [
        {
            "seed": seed, "arm": arm, "budget": budget, "n_real": budget or 0, "n_synthetic": 7,
            "correct": "".join(map(str, (generator.random(n) < shares[arm]).astype(int))),
        }
        for seed in range(2)
        for arm, budget in cells
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mixed", "start"),
    [(0.9, "The synthetic pictures were worth it: better"), (0.3, "The synthetic pictures were not worth it: worse"),
     (0.6, "The synthetic pictures were not worth it: no difference")],
)  # fmt: skip
def test_the_sentence_follows_from_the_comparisons(mixed, start):
    figures = summarise(rows_of({REAL: 0.5, CLASSICAL: 0.6, MIXED: mixed, SYNTHETIC: 0.4}), torch.arange(200) % 4)
    assert figures["verdict"].startswith(start)
    assert verdict(figures["comparisons"]) == figures["verdict"]
    text = as_markdown(figures, "Title")
    assert text.count("| real + synthetic |") == 2
    assert figures["verdict"] in text
    assert len(study_figure(figures).axes[0].get_legend().get_texts()) == 4


def test_the_sentence_says_where_budgets_differ():
    rows = [
        {"against": CLASSICAL, "budget": budget, "difference": difference, "p_holm": 0.01}
        for budget, difference in ((5, 0.04), (40, -0.02))
    ]
    assert verdict(rows) == (
        "The synthetic pictures were worth it at some budgets only: better than classical augmentation at 5 (+4.0 "
        "points, p 0.0100); worse at 40 (-2.0 points, p 0.0100) real pictures per class."
    )


def test_a_reference_classifier_learns_phantoms_and_follows_its_seed():
    arrays = make_phantoms(0, {"train": 300, "test": 200})
    train, test = (Split(arrays[f"{s}_images"], arrays[f"{s}_labels"][:, 0].long()) for s in ("train", "test"))
    settings = ClassifierSettings(n_steps=60, batch_size=32)
    made = train_classifier([train], 5, settings, seed=0)
    assert (made.probability(test.images).argmax(1) == test.labels).double().mean() > 0.5
    short = dataclasses.replace(settings, n_steps=2, augment=True, flips=True)
    a, b, c = (train_classifier([train, test], 5, short, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.head.weight, c.head.weight)
    assert made.features(test.images[:3]).shape == (3, 64)


def test_no_source_may_be_empty():
    empty = Split(torch.zeros(0, 8, 8, 1, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least one picture"):
        train_classifier([empty], 2, ClassifierSettings(), seed=0)


def test_augmentation_moves_pictures_and_stays_in_range():
    pictures = torch.rand(16, 3, 12, 12) * 2 - 1
    moved = augmented(pictures, torch.Generator().manual_seed(0), flips=True)
    assert moved.shape == pictures.shape
    assert moved.abs().max() <= 1
    assert (moved - pictures).abs().flatten(1).mean(1).min() > 0.01
    assert torch.equal(moved, augmented(pictures, torch.Generator().manual_seed(0), flips=True))


def test_the_classifier_is_small():
    assert sum(p.numel() for p in Classifier(3, 28, 5).parameters()) < 100_000
