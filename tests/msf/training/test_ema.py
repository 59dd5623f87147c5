import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from msf.training.ema import weight_average


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


def test_an_interrupted_average_resumes_exactly():
    network = Tiny()
    whole, first = weight_average(network, 0.8), weight_average(network, 0.8)
    for seed in range(6):
        perturb(network, seed)
        whole.update_parameters(network)
        if seed == 2:
            first.update_parameters(network)
            resumed = weight_average(Tiny(), 0.8)
            resumed.load_state_dict(copy.deepcopy(first.state_dict()))
            first = resumed
        else:
            first.update_parameters(network)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), first.state_dict().values(), strict=True))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\)"):
        weight_average(Tiny(), decay)
