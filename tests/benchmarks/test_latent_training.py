import dataclasses

import pytest
import torch

from benchmarks import latent_training
from benchmarks.rows import OURS, RowWriter
from benchmarks.timing import Plan
from msf.config import RECIPES, UNetConfig

pytest.importorskip("diffusers", reason="needs diffusers (extra latent)")

SMALL = {**latent_training.CONFIG, "block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "layers_per_block": 1}


@pytest.fixture
def small(monkeypatch):
    published = RECIPES["published-224"]
    recipe = dataclasses.replace(
        published,
        data=dataclasses.replace(published.data, image_size=32),
        network=UNetConfig(
            base_channels=32, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=32
        ),
    )
    monkeypatch.setitem(RECIPES, "published-224", recipe)
    monkeypatch.setattr(latent_training, "CONFIG", SMALL)
    monkeypatch.setattr(latent_training, "SIZE", 32)
    monkeypatch.setenv("MSF_CACHE", "")


def measured():
    device = torch.device("cpu")
    writer = RowWriter(latent_training.SUITE, device)
    return latent_training.measure(writer, device, batch_size=2, plan=Plan(1, 0.0, 0.0))


def test_both_ways_to_train_are_timed_and_compared(small):
    rows = {(row.variant, row.metric): row for row in measured()}
    assert rows.keys() == {(OURS, "time"), ("on-the-fly", "time"), (OURS, "speedup_vs:on-the-fly")}
    ours, other = rows[OURS, "time"].median, rows["on-the-fly", "time"].median
    assert rows[OURS, "speedup_vs:on-the-fly"].median == pytest.approx(other / ours)


def test_nothing_is_timed_where_the_losses_differ(small, monkeypatch):
    monkeypatch.setattr(
        latent_training, "steps", lambda *_: {OURS: lambda: torch.tensor(1.0), "on-the-fly": lambda: torch.tensor(2.0)}
    )
    with pytest.raises(RuntimeError, match="losses must be equal"):
        measured()
