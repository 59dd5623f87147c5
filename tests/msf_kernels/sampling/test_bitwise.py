"""Bits of an input's samples and statistics do not depend on what else is drawn, for a real network."""

import pytest
import torch
from torch import Tensor

from msf.config import UNetConfig
from msf.network.unet import UNet
from msf_kernels import class_distance
from msf_kernels.sampling import (
    FlowTrajectory,
    Mean,
    MeanEntropy,
    MeanVariance,
    SamplingResult,
    SettledVote,
    Votes,
    draw,
)
from msf_kernels.solvers import HEUN, uniform_grid

SIZE, CHANNELS = 8, 3
CODES = torch.tensor([[-1.0, -1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, 1.0], [1.0, 1.0, -1.0]])
STATISTICS = {
    "distance": MeanVariance("distance"),
    "votes": Votes("distance"),
    "probability": Mean("probability"),
    "entropy": MeanEntropy("probability"),
}
N_MANY, N_SAMPLES, MICRO_BATCH = 1000, 3, 16


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def trajectory(request) -> FlowTrajectory:
    torch.manual_seed(0)
    config = UNetConfig(
        base_channels=32, channel_multipliers=(1, 2), n_res_blocks=1, attention_down_rates=(2,), head_channels=32
    )
    network = UNet(config, CHANNELS + 3, CHANNELS + 3).eval().requires_grad_(False)
    for parameter in network.parameters():  # a fresh network is zero
        parameter.copy_(torch.randn_like(parameter) * 0.1)
    network = network.to(request.param)

    def readout(state: Tensor) -> dict[str, Tensor]:
        distance, _ = class_distance(state[:, CHANNELS:], CODES)
        return {"distance": distance, "probability": torch.softmax(-distance, dim=1)}

    return FlowTrajectory(network, uniform_grid(1, 1.0, 0.0), HEUN, readout=readout, cast_to=request.param)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(N_MANY, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def among_many(trajectory, images) -> SamplingResult:
    return run(trajectory, images, torch.arange(N_MANY))


def run(trajectory, images, input_key, n_samples=N_SAMPLES, **options) -> SamplingResult:
    options = {"statistics": STATISTICS, "keep_samples": True, "micro_batch": MICRO_BATCH, "seed": 5} | options
    return draw(trajectory, images, n_samples, (3, SIZE, SIZE), input_key=input_key, **options)


def assert_same_bits(actual: SamplingResult, expected: SamplingResult, rows=slice(None)) -> None:
    exact = {"rtol": 0, "atol": 0, "equal_nan": True}  # NaN where an input stopped early
    assert torch.equal(actual.n_samples, expected.n_samples[rows])
    for name, tensors in expected.statistics.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(actual.statistics[name][key], tensor[rows], **exact)
    for name, tensor in expected.samples.items():
        torch.testing.assert_close(actual.samples[name], tensor[rows], **exact)


def test_samples_of_a_real_network_differ_between_inputs_and_noises(among_many):
    distance = among_many.samples["distance"]
    assert distance.isfinite().all()
    assert distance.std(0).min() > 1e-3
    assert distance.std(1).min() > 1e-5


@pytest.mark.parametrize("row", [0, 500, 999])
def test_an_input_has_the_same_bits_alone_as_among_a_thousand(trajectory, images, among_many, row):
    alone = run(trajectory, images[row : row + 1], torch.tensor([row]))
    assert_same_bits(alone, among_many, slice(row, row + 1))


def test_inputs_have_the_same_bits_in_a_batch_of_seven_as_among_a_thousand(trajectory, images, among_many):
    rows = torch.tensor([998, 3, 70, 501, 0, 333, 999])
    assert_same_bits(run(trajectory, images[rows], rows), among_many, rows)


@pytest.mark.slow
def test_micro_batches_in_any_order_give_the_same_bits(trajectory, images, among_many):
    n_batches = -(-N_MANY * N_SAMPLES // MICRO_BATCH)
    order = torch.randperm(n_batches, generator=torch.Generator().manual_seed(2)).tolist()
    assert_same_bits(run(trajectory, images, torch.arange(N_MANY), order=order), among_many)


def test_the_first_samples_of_a_long_draw_are_the_samples_of_a_short_one(trajectory, images):
    short = run(trajectory, images[:2], torch.arange(2), n_samples=64)
    long = run(trajectory, images[:2], torch.arange(2), n_samples=256)
    for name in ("distance", "probability"):
        assert torch.equal(short.samples[name], long.samples[name][:, :64])


@pytest.mark.slow
def test_a_stopping_rule_decides_on_the_same_bits_whatever_else_is_drawn(trajectory, images):
    stop = SettledVote(alpha=0.5, first=4)
    together = run(trajectory, images[:20], torch.arange(20), n_samples=64, stop=stop)
    for row in (1, 7, 15):
        alone = run(trajectory, images[row : row + 1], torch.tensor([row]), n_samples=64, stop=stop)
        assert_same_bits(alone, together, slice(row, row + 1))
        assert torch.equal(alone.settled, together.settled[row : row + 1])
    assert together.n_samples[torch.tensor([1, 7, 15])].unique().numel() == 3  # else nothing was decided


def test_another_micro_batch_is_the_same_up_to_rounding(trajectory, images):
    ours = run(trajectory, images[:3], torch.arange(3))
    other = run(trajectory, images[:3], torch.arange(3), micro_batch=5)
    torch.testing.assert_close(ours.samples["distance"], other.samples["distance"], atol=0.02, rtol=0.02)
