"""A third part of the training pictures, which neither trains nor chooses: what guarantees are calibrated on."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch

from msf.data.dataset import HeldOut, ImageDataset, Split
from msf.data.packed_rows import picture_groups
from msf.data.splits import VAL, make_splits

# Of the division, which must be the same whenever the data set is opened again.
_SEED = 0


def hold_out_calibration(dataset: ImageDataset, share: float) -> ImageDataset:
    """Return a data set with a share of its training pictures as a split `calibration`; with no share the same one.

    Args:
        dataset: Its `train` split is divided, in equal shares of every class, and never within a group, such as a
            patient, where `msf pack` noted groups.
        share: In [0, 1).

    Returns:
        The data set with the rest as `train`, and another fingerprint. Equal pictures, groups and share give an equal
        division.

    Raises:
        ValueError: A share out of range, or too few pictures of a class, or groups, to be divided so.
    """
    if not 0 <= share < 1:
        raise ValueError(f"calibration_share must be in [0, 1); got {share!r}")
    if share == 0:
        return dataset
    labels, groups = dataset.train.labels.numpy(), picture_groups(dataset, "train")
    if dataset.is_per_pixel:  # whose pictures have no class to be divided by
        labels = np.zeros(len(labels), np.int64)
    try:
        is_kept = torch.from_numpy(make_splits(labels, groups, val=share, test=0.0, seed=_SEED) == VAL)
    except ValueError as error:
        raise ValueError(f"calibration_share of {share:g} cannot be kept of the train split: {error}") from error
    rows, rest = is_kept.nonzero()[:, 0], (~is_kept).nonzero()[:, 0]
    fingerprint = hashlib.sha256(f"{dataset.fingerprint} without {share!r} for calibration".encode()).hexdigest()
    return dataclasses.replace(
        dataset,
        train=_part(dataset.train, rest),
        fingerprint=fingerprint,
        held_out=HeldOut(dataset, _part(dataset.train, rows), {"train": rest, "calibration": rows}),
    )


def _part(split: Split, rows: torch.Tensor) -> Split:
    return Split(split.images[rows], split.labels[rows])
