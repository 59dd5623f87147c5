"""Which pictures are for training, choosing and testing: stratified by class, and never one group in two splits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

IntArray = np.ndarray[Any, np.dtype[Any]]
TRAIN, VAL, TEST = 0, 1, 2
NOT_SAID = -1
_MOST_FOLDS = 20
_MOST_UNITS = 2000


def make_splits(labels: IntArray, groups: IntArray | None = None, *, val: float, test: float, seed: int) -> IntArray:
    """Divide pictures at random, in equal shares of every class.

    Without groups the shares are exact but for rounding; a class of a single picture goes to training. With groups
    whole groups are divided, so that shares are met as nearly as up to 20 folds allow; where a class would be missing
    from training, the smallest of its groups goes there.

    Args:
        labels: Class of each picture; [N], whole numbers.
        groups: Group of each picture, such as its patient; [N], whole numbers; -1: a group of its own. None: no groups.
        val: Share for choosing, in [0, 1).
        test: Share for testing, in [0, 1); val + test < 1.
        seed: Decides, together with the other arguments and nothing else.

    Returns:
        int8 [N]: 0 training, 1 choosing, 2 testing.

    Raises:
        ValueError: Shares out of range, or too few pictures or groups for them.
    """
    check_shares(val, test)
    splits = np.full(len(labels), TRAIN, np.int8)
    wanted = [(name, code, share) for name, code, share in (("test", TEST, test), ("val", VAL, val)) if share]
    if groups is not None and wanted:
        _divide_groups(splits, labels, _own_where_missing(groups), (val, test), seed)
    elif wanted:
        left = 1.0
        for name, code, share in wanted:
            _divide_pictures(splits, labels, (name, code, share / left), seed)
            left -= share
    for name, code, _ in wanted:
        if not (splits == code).any():
            raise ValueError(f"there are too few pictures or groups for a split {name}: give it a larger share, or 0")
    return splits


def check_shares(val: float, test: float) -> None:
    """Refuse shares that leave nothing for training.

    Raises:
        ValueError: The text names them.
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise ValueError(f"val and test must be shares in [0, 1) with a sum below 1; got {val} and {test}")


def groups_in_two_splits(groups: IntArray, splits: IntArray) -> IntArray:
    """Return the groups, ascending, that have pictures in more than one split; -1 is no group."""
    pairs = np.unique(np.stack([groups, splits], 1)[groups != NOT_SAID], axis=0)
    found, n_splits = np.unique(pairs[:, 0], return_counts=True)
    several: IntArray = found[n_splits > 1]
    return several


def _divide_pictures(splits: IntArray, labels: IntArray, wanted: tuple[str, int, float], seed: int) -> None:
    from sklearn.model_selection import train_test_split

    name, code, share = wanted
    rows = np.flatnonzero(splits == TRAIN)
    counts = np.bincount(labels[rows])
    rows = rows[counts[labels[rows]] > 1]
    n_classes, n = len(np.unique(labels[rows])), round(share * len(rows))
    if n < max(1, n_classes) or len(rows) - n < n_classes:
        raise ValueError(
            f"{name} = {share:.3g} of {len(rows)} pictures is {n}, and each of {n_classes} classes needs one there and "
            "one in training: give another share, or more pictures"
        )
    _, chosen = train_test_split(rows, test_size=n, stratify=labels[rows], random_state=seed)
    splits[chosen] = code


def _own_where_missing(groups: IntArray) -> IntArray:
    own: IntArray = groups.astype(np.int64)
    missing = np.flatnonzero(own == NOT_SAID)
    own[missing] = own.max(initial=0) + 1 + np.arange(len(missing))
    return own


def _divide_groups(
    splits: IntArray, labels: IntArray, groups: IntArray, shares: tuple[float, float], seed: int
) -> None:
    """Set the splits of whole groups; `groups` holds no -1."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = _units(groups, seed)
    most = min(_MOST_FOLDS, len(np.unique(groups)), int(np.bincount(labels).max()))
    n_folds, n_val, n_test = _folds(most, *shares)
    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes with fewer pictures than folds
        for number, (_, chosen) in enumerate(folds.split(np.zeros(len(labels)), labels, groups)):
            splits[chosen] = TEST if number < n_test else VAL if number < n_test + n_val else TRAIN
    for label in np.unique(labels):
        if not (splits[labels == label] == TRAIN).any():
            candidates, _ = np.unique(groups[labels == label], return_counts=True)
            sizes = [int((groups == group).sum()) for group in candidates]
            splits[groups == candidates[int(np.argmin(sizes))]] = TRAIN


def _units(groups: IntArray, seed: int) -> IntArray:
    """Return groups put together at random where they are many: scikit-learn looks at all folds for each of them."""
    names, units = np.unique(groups, return_inverse=True)
    if len(names) > _MOST_UNITS:
        units = (np.random.default_rng(seed).permutation(len(names)) % _MOST_UNITS)[units]
    return units


def _folds(most: int, val: float, test: float) -> tuple[int, int, int]:
    """Return the number of folds, and those for val and test, that come nearest to the shares."""
    choices = []
    for n_folds in range(2, most + 1):
        n_val, n_test = (max(1, round(share * n_folds)) if share else 0 for share in (val, test))
        if n_val + n_test < n_folds:
            error = abs(n_val / n_folds - val) + abs(n_test / n_folds - test)
            choices.append((round(error, 9), n_folds, n_val, n_test))
    if not choices:
        raise ValueError(
            f"there are too few groups, or pictures of every class, for the splits: at most {most} parts can be made"
        )
    return min(choices)[1:]
