"""Findings as a network would give them, without one."""

import numpy as np
import pytest
import torch

from msf.data import load_dataset, make_phantoms
from msf.judge.metrics import prediction_metrics
from msf.judge.uncertainty import Draws, make_prediction
from msf.report.findings import Findings

N = 60


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cells.npz"
    arrays = make_phantoms(0, {"train": 20, "val": 15, "test": N})
    names = np.array(["<b>pale</b>", "round & firm", "kidney", "two lobes", "three lobes"])
    np.savez(path, class_names=names, **{name: values.numpy() for name, values in arrays.items()})
    return load_dataset(path)


def find(dataset, noise, **fields):
    """Return findings whose predictions are the truth with so much noise; 0: all right."""
    generator = torch.Generator().manual_seed(0)
    labels = dataset.test.labels
    distance = 1.5 - torch.nn.functional.one_hot(labels, dataset.n_classes).double()
    distance += noise * torch.rand(distance.shape, generator=generator, dtype=torch.float64)
    votes = torch.nn.functional.one_hot(distance.argmin(1), dataset.n_classes).double() * 0.5
    votes += torch.softmax(-distance, 1) * 0.5
    draws = Draws(class_distance=distance, distance_std=distance * 0, votes=votes, pixel_votes=votes)
    prediction = make_prediction(draws, n_samples=16, nfe=2, micro_batch=8)
    metrics = {
        "split": "test",
        **prediction_metrics(prediction, labels, class_names=dataset.class_names),
        "mean_n_samples": 16.0,
        "nfe": 2,
        "seconds": 3.0,
        "precision": "fp32",
        "convolution": "torch",
    }
    made_with = {"checkpoint_sha256": "ab" * 32, "seed": 0, "device": "cpu", "versions": {"torch": "2"}}
    return Findings(
        dataset=dataset, split="test", prediction=prediction, metrics=metrics, made_with=made_with, **fields
    )


@pytest.fixture(scope="session")
def findings(dataset):
    generated = {name: torch.rand(2, 3, 28, 28) for name in dataset.class_names}
    return find(dataset, 2.0, generated=generated)
