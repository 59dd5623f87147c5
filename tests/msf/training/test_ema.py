import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from msf.training.ema import power_of_length, weight_average


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("running", torch.zeros(2))

    def forward(self, x):
        return self.dropout(self.layer(x)) + self.running


def perturb(network, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            value.copy_(torch.randn(value.shape, generator=generator))


def test_the_average_follows_its_recurrence_from_the_first_update_on():
    network = Tiny()
    average = weight_average(network, 0.7)
    expected = None
    for seed in range(5):
        perturb(network, seed)
        average.update_parameters(network)
        now = {name: value.clone().double() for name, value in network.state_dict().items()}
        expected = now if expected is None else {k: 0.7 * expected[k] + 0.3 * now[k] for k in now}
    for name, value in average.module.state_dict().items():
        assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_decay_zero_copies_the_network():
    network = Tiny()
    average = weight_average(network, 0.0)
    for seed in range(3):
        perturb(network, seed)
        average.update_parameters(network)
    for ours, theirs in zip(average.module.state_dict().values(), network.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_network_is_not_touched():
    network = Tiny()
    before = copy.deepcopy(network.state_dict())
    average = weight_average(network, 0.9)
    average.update_parameters(network)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_average_evaluates_without_dropout_and_without_gradient():
    average = weight_average(Tiny(), 0.9)
    x = torch.ones(4, 3)
    assert torch.equal(average(x), average(x))
    assert not average(x).requires_grad


@pytest.mark.parametrize("settings", [{"decay": 0.8}, {"length": 0.1}], ids=["fixed", "growing"])
def test_an_interrupted_average_resumes_exactly(settings):
    network = Tiny()
    whole, first = weight_average(network, **settings), weight_average(network, **settings)
    for seed in range(6):
        perturb(network, seed)
        whole.update_parameters(network)
        if seed == 2:
            first.update_parameters(network)
            resumed = weight_average(Tiny(), **settings)
            resumed.load_state_dict(copy.deepcopy(first.state_dict()))
            first = resumed
        else:
            first.update_parameters(network)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), first.state_dict().values(), strict=True))


@pytest.mark.parametrize(("length", "power"), [(0.05, 16.97), (0.1, 6.94), (0.25, 0.72)])
def test_the_power_of_a_length_is_that_of_the_source(length, power):
    gamma = power_of_length(length)
    assert gamma == pytest.approx(power, abs=0.01)
    assert ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5 == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("n_steps", [1, 2, 40, 400])
@pytest.mark.parametrize("length", [0.05, 0.2])
def test_a_growing_average_weighs_the_steps_of_any_run_alike(n_steps, length):
    network = nn.Linear(1, 1, bias=False)
    average = weight_average(network, length=length)
    power = power_of_length(length) + 1
    weights = torch.tensor([(i / n_steps) ** power - ((i - 1) / n_steps) ** power for i in range(1, n_steps + 1)])
    for i in range(1, n_steps + 1):
        network.weight.data.fill_(i / n_steps)
        average.update_parameters(network)
    steps = torch.arange(1, n_steps + 1) / n_steps
    mean = float((weights * steps).sum())
    assert float(average.module.weight.detach()) == pytest.approx(mean, abs=1e-5)
    if n_steps == 400:
        deviation = float((weights * (steps - mean).square()).sum().sqrt())
        assert deviation == pytest.approx(length, rel=0.02)


def test_buffers_of_whole_numbers_are_copied_by_a_growing_average():
    network = nn.BatchNorm1d(2)
    average = weight_average(network, length=0.1)
    for n in range(3):
        network.num_batches_tracked.fill_(n)
        average.update_parameters(network)
    assert int(average.module.num_batches_tracked) == 2


@pytest.mark.parametrize("length", [0.0, -0.1, 0.29, float("nan")])
def test_a_length_out_of_range_is_refused(length):
    with pytest.raises(ValueError, match=r"length must be in \(0, 0.28\]"):
        weight_average(Tiny(), length=length)


@pytest.mark.parametrize("both", [{}, {"decay": 0.9, "length": 0.1}])
def test_an_average_has_one_length(both):
    with pytest.raises(ValueError, match="exactly one of decay and length"):
        weight_average(Tiny(), **both)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        weight_average(Tiny(), decay)
