"""Splits: stratified, in whole groups, functions of the seed; over random tables."""

import numpy as np
import pytest

from msf.data import splits as splits_module
from msf.data.splits import TEST, TRAIN, VAL, groups_in_two_splits, make_splits


def random_table(seed):
    rng = np.random.default_rng(seed)
    n_classes, n_groups = int(rng.integers(2, 5)), int(rng.integers(4, 16))
    n = int(rng.integers(max(30, n_groups), 80))
    groups = rng.integers(0, n_groups, n)
    if seed % 3 == 0:  # a group has one class, as patients with one disease do
        labels = rng.integers(0, n_classes, n_groups)[groups]
    else:
        labels = rng.choice(n_classes, n, p=rng.dirichlet(np.ones(n_classes)))
    groups[rng.random(n) < rng.choice([0.0, 0.04])] = -1
    shares = {"val": float(rng.choice([0.0, 0.1, 0.15, 0.3])), "test": float(rng.choice([0.0, 0.15, 0.25, 0.4]))}
    return labels, groups, shares


@pytest.mark.slow
def test_no_group_is_in_two_splits_and_no_class_without_training_over_a_thousand_tables():
    n_made = 0
    for seed in range(1000):
        labels, groups, shares = random_table(seed)
        try:
            splits = make_splits(labels, groups, **shares, seed=seed)
        except ValueError:  # too few groups for the shares
            continue
        n_made += 1
        for group in np.unique(groups[groups >= 0]):
            assert len(np.unique(splits[groups == group])) == 1
        assert not len(groups_in_two_splits(groups, splits))
        assert set(np.unique(labels[splits == TRAIN])) == set(np.unique(labels))
        assert (splits == VAL).any() == (shares["val"] > 0)
        assert (splits == TEST).any() == (shares["test"] > 0)
    assert n_made > 900


def test_many_groups_are_divided_whole_and_in_equal_shares(monkeypatch):
    monkeypatch.setattr(splits_module, "_MOST_UNITS", 60)
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 3000), rng.integers(0, 700, 3000)
    splits = make_splits(labels, groups, val=0.15, test=0.15, seed=0)
    assert not len(groups_in_two_splits(groups, splits))
    for label in range(3):
        for code in (VAL, TEST):
            assert (splits[labels == label] == code).mean() == pytest.approx(0.15, abs=0.02)


def test_groups_in_two_splits_are_found_and_missing_groups_are_none():
    groups, splits = np.array([0, 0, 1, 1, -1, -1, 2]), np.array([0, 0, 0, 2, 0, 1, 1])
    assert groups_in_two_splits(groups, splits).tolist() == [1]


def test_shares_of_every_class_are_those_that_were_asked_for():
    labels = np.repeat([0, 1, 2], [200, 100, 40])
    splits = make_splits(labels, val=0.15, test=0.15, seed=3)
    for label, n in enumerate((200, 100, 40)):
        for code in (VAL, TEST):
            assert (splits[labels == label] == code).sum() == pytest.approx(0.15 * n, abs=1)


def test_grouped_shares_are_met_where_groups_are_small():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 3, 3000), rng.integers(0, 500, 3000)
    splits = make_splits(labels, groups, val=0.15, test=0.2, seed=0)
    assert (splits == VAL).mean() == pytest.approx(0.15, abs=0.01)
    assert (splits == TEST).mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("groups", [None, np.arange(120) // 3])
def test_the_seed_decides_and_nothing_else(groups):
    labels = np.arange(120) % 3
    one, again, other = (make_splits(labels, groups, val=0.2, test=0.2, seed=seed) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()


def test_a_class_with_one_group_goes_to_training():
    labels = np.array([0] * 30 + [1] * 30 + [2] * 5)
    groups = np.array([*np.arange(60) // 2, *[99] * 5])
    for seed in range(10):
        assert (make_splits(labels, groups, val=0.2, test=0.2, seed=seed)[labels == 2] == TRAIN).all()


def test_a_class_of_one_picture_goes_to_training():
    labels = np.array([0] * 30 + [1] * 30 + [2])
    assert make_splits(labels, val=0.2, test=0.2, seed=0)[-1] == TRAIN


@pytest.mark.parametrize(
    ("n", "groups", "shares", "words"),
    [
        (100, None, (0.6, 0.6), "sum below 1; got 0.6 and 0.6"),
        (100, None, (-0.1, 0.1), "shares in \\[0, 1\\)"),
        (6, None, (0.1, 0.1), "test = 0.1 of 6 pictures is 1, and each of 2 classes needs one"),
        (6, np.zeros(6, int), (0.1, 0.1), "too few groups"),
        (6, np.arange(6) % 2, (0.2, 0.2), "too few groups"),
    ],
)
def test_splits_that_cannot_be_made_are_refused(n, groups, shares, words):
    with pytest.raises(ValueError, match=words):
        make_splits(np.arange(n) % 2, groups, val=shares[0], test=shares[1], seed=0)
