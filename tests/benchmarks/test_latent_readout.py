import itertools

import pytest
import torch

from benchmarks import latent_readout
from benchmarks.rows import RowWriter
from msf.config import AutoencoderConfig, DataConfig, ExperimentConfig, UNetConfig

pytest.importorskip("diffusers", reason="the latent path needs diffusers")

TINY = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


@pytest.fixture
def flow(monkeypatch):
    monkeypatch.setattr(latent_readout, "CONFIG", TINY)
    experiment = ExperimentConfig(
        data=DataConfig(image_size=16),
        network=UNetConfig(base_channels=32, channel_multipliers=(1,), attention_down_rates=(), head_channels=32),
        autoencoder=AutoencoderConfig(name="kl"),
    )
    return latent_readout.make_flow(experiment)


def test_no_layer_of_the_measured_network_is_zero(flow):
    assert all(parameter.any() for parameter in flow.network.parameters())


def test_both_readouts_are_timed_and_compared(flow):
    ticks = itertools.count()
    writer = RowWriter("readout", torch.device("cpu"))
    rows = latent_readout.measure(
        writer, flow, n_samples=3, n_rounds=4, n_decoded_rounds=2, note="tiny", clock=lambda: float(next(ticks))
    )
    found = {(row.job, row.variant, row.metric): row for row in rows}
    job = "classify-latent-16-s3"
    assert found[job, "ours", "time"].n == 4
    assert found[job, "decoded", "time"].n == 2
    assert found[job, "ours", "speedup_vs:decoded"].median == 1.0
    assert found["class-latents-16", "ours", "time"].n == 1
