import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import small_data
from msf.config import RECIPES, UNetConfig
from msf.data import load_dataset, make_phantoms


@pytest.fixture
def folder(tmp_path):
    arrays = make_phantoms(0, {"train": 40, "val": 20, "test": 20})
    np.savez(tmp_path / "cells.npz", **{name: values.numpy() for name, values in arrays.items()})
    return tmp_path


def test_a_subset_has_the_classes_in_the_same_shares_and_leaves_the_other_splits(folder):
    whole = load_dataset(folder / "cells.npz")
    part, again = (small_data.subset(whole, {"train": 20, "val": 10}) for _ in range(2))
    shares = whole.train.labels.bincount().double() / len(whole.train)
    assert (part.train.labels.bincount() - 20 * shares).abs().max() < 1
    assert (len(part.train), len(part.val), len(part.test)) == (20, 10, 20)
    assert torch.equal(part.train.images, again.train.images)
    assert part.fingerprint == again.fingerprint != whole.fingerprint


def test_what_is_done_is_not_done_again_and_the_test_split_is_read_when_asked(folder, monkeypatch, capsys):
    recipe = RECIPES["recommended"]
    tiny = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, image_size=8),
        network=UNetConfig(
            base_channels=8,
            n_groups=4,
            channel_multipliers=(1,),
            n_res_blocks=1,
            attention_down_rates=(),
            head_channels=8,
        ),
        train=dataclasses.replace(recipe.train, steps=4, precision="fp32"),
    )
    monkeypatch.setitem(RECIPES, "recommended", tiny)
    monkeypatch.setattr(small_data, "SUBSETS", {"cells": {"train": 30}})
    arguments = [str(folder), "--out", str(folder / "runs"), "--seeds", "0,1"]
    assert small_data.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("| cells | ") == 3
    assert "val split" in printed
    kept = folder / "runs" / "cells-recommended-1"
    assert {file.name for file in kept.glob("*.json")} == {"val.json", "config.json", "history.json"}

    def refuse(*_, **__):
        raise AssertionError

    monkeypatch.setattr(small_data, "evaluate", refuse)
    assert small_data.main(arguments) == 0
    assert capsys.readouterr().out == printed
    with pytest.raises(AssertionError):
        small_data.main([*arguments, "--test"])
