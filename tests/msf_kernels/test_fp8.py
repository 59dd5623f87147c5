"""E4M3: scales, rounding, products, the emulation of a network and the gate."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from msf_kernels import fp8


def seeded(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_a_channels_largest_weight_becomes_the_largest_number():
    weight = seeded(6, 4, 3, 3) * torch.logspace(-3, 3, 6)[:, None, None, None]
    weight[2] = 0
    scale = fp8.weight_scale(weight)
    rounded = fp8.to_e4m3(weight, scale[:, None, None, None]).float().abs().flatten(1).amax(1)
    assert rounded.tolist() == [448.0, 448.0, 0.0, 448.0, 448.0, 448.0]
    error = (fp8.rounded_to_e4m3(weight, scale[:, None, None, None]) - weight).abs()
    # Three bits of mantissa: at most 1/16 of a normal number, and half the smallest step below those.
    assert (error <= torch.maximum(weight.abs() / 16, scale[:, None, None, None] * 2**-10)).all()


def test_what_lies_beyond_the_range_saturates():
    rounded = fp8.to_e4m3(torch.tensor([1e6, -1e6, 449.0]), torch.tensor(1.0))
    assert rounded.float().tolist() == [448.0, -448.0, 448.0]


def test_the_activations_scale_is_that_of_all_calibration_data():
    scale = fp8.activation_scale([torch.ones(2, 3), -4.48 * torch.ones(5), torch.zeros(0)])
    assert float(scale) == pytest.approx(0.01)
    assert float(fp8.activation_scale([torch.zeros(3)])) == 1.0
    with pytest.raises(ValueError, match="maps must hold activations to calibrate on; got none"):
        fp8.activation_scale([])
    with pytest.raises(ValueError, match="maps must be finite; got inf"):
        fp8.activation_scale([torch.tensor([1.0, float("inf")])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_product_is_that_of_the_rounded_operands(dtype):
    x, weight, bias = seeded(5, 32, dtype=dtype), seeded(48, 32, seed=1), seeded(48, seed=2)
    x_scale, weight_scale = fp8.activation_scale([x]), fp8.weight_scale(weight)
    got = fp8.linear_fp8(x, fp8.to_e4m3(weight, weight_scale[:, None]), weight_scale, x_scale, bias)
    operands = fp8.to_e4m3(x, x_scale).double() * x_scale, fp8.rounded_to_e4m3(weight, weight_scale[:, None]).double()
    expected = operands[0] @ operands[1].T + bias
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=2**-7, atol=2**-6)


WEIGHT = torch.zeros(16, 16).to(fp8.E4M3)
ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 16).half(), WEIGHT, torch.ones(16)), TypeError, "x must have dtype torch.bfloat16 or"),
        ((torch.zeros(2, 16), WEIGHT.float(), torch.ones(16)), TypeError, "weight must have dtype torch.float8_e4m3fn"),
        (
            (torch.zeros(2, 8), WEIGHT, torch.ones(16)),
            ValueError,
            r"x must be \[M, C\] = \[2, 16\]; got shape \[2, 8\]",
        ),
        ((torch.zeros(2, 16), WEIGHT[:8], torch.ones(8)), ValueError, "both multiples of 16"),
        ((torch.zeros(2, 16), WEIGHT, torch.ones(3)), ValueError, r"weight_scale must be \[K\] = \[16\]"),
    ],
)
def test_operands_that_do_not_fit_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        fp8.linear_fp8(*arguments, ONE)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.unused = nn.Conv2d(2, 8, 3), nn.Linear(8, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


def test_the_emulation_rounds_the_operands_of_every_layer_that_ran_and_leaves_the_network_alone():
    network, x = Small(), seeded(3, 2, 6, 6)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    emulated = fp8.emulate_fp8(network, lambda net: net(x))
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert emulated.unused.weight.equal(network.unused.weight)

    def layer(module, h, peak):
        shape = (-1, *[1] * (module.weight.dim() - 1))
        weight = fp8.rounded_to_e4m3(module.weight, fp8.weight_scale(module.weight).reshape(shape))
        h = fp8.rounded_to_e4m3(h, torch.tensor(peak) / fp8.E4M3_MAX)
        return nn.functional.conv2d(h, weight, module.bias) if h.dim() == 4 else h @ weight.T + module.bias

    with torch.no_grad():
        inside = torch.relu(network.conv(x)).mean((2, 3))
        h = torch.relu(layer(network.conv, x, float(x.abs().max()))).mean((2, 3))
        # The emulation calibrates on the exact network's activations.
        expected = layer(network.linear, h, float(inside.abs().max()))
        got = emulated(x)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(got, network(x))


def predictions(label, distance):
    return SimpleNamespace(label=torch.as_tensor(label), nearest_distance=torch.as_tensor(distance))


def test_the_gate_passes_equal_predictions_and_returns_the_figures():
    reference = predictions(torch.arange(400) % 7, torch.linspace(0, 1, 400))
    label = reference.label.clone()
    label[:2] += 1
    figures = fp8.fp8_gate(reference, predictions(label, reference.nearest_distance**3))
    assert (figures.agreement, figures.passes) == (0.995, True)
    assert figures.rank_correlation == pytest.approx(1.0)
    assert "99.50% of 400 labels agree" in str(figures)


def test_the_gate_refuses_other_labels_and_another_ranking():
    reference = predictions(torch.zeros(400).long(), torch.linspace(0, 1, 400))
    label = reference.label.clone()
    label[:3] = 1
    shuffled = reference.nearest_distance[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    for candidate, text in (
        (predictions(label, reference.nearest_distance), "FP8 is refused: 99.25% of 400 labels agree"),
        (predictions(reference.label, shuffled), "wanted at least 99.5% and 0.99"),
        (predictions(reference.label, torch.full((400,), float("nan"))), "nearest distance nan"),
    ):
        with pytest.raises(fp8.Fp8RefusedError, match=text) as refusal:
            fp8.fp8_gate(reference, candidate)
        assert not refusal.value.figures.passes


def test_predictions_that_cannot_be_compared_are_refused():
    one, two = predictions([1], [0.5]), predictions([1, 2], [0.5, 0.6])
    with pytest.raises(ValueError, match=r"candidate.label must be \[N\] = \[2\]; got shape \[1\]"):
        fp8.fp8_gate(two, one)
    with pytest.raises(ValueError, match="reference must hold at least two predictions; got 1"):
        fp8.fp8_gate(one, one)


def test_the_rank_correlation_is_spearmans_with_mean_ranks_for_ties():
    a, b = torch.tensor([1.0, 2.0, 2.0, 3.0, 5.0]), torch.tensor([2.0, 1.0, 4.0, 4.0, 4.0])
    ranks = torch.tensor([[1.0, 2.5, 2.5, 4.0, 5.0], [2.0, 1.0, 4.0, 4.0, 4.0]]).double()
    assert fp8.rank_correlation(a, b) == pytest.approx(float(torch.corrcoef(ranks)[0, 1]))
    assert fp8.rank_correlation(a, -a) == pytest.approx(-1.0)
    assert fp8.rank_correlation(a, torch.ones(5)) != fp8.rank_correlation(a, a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_scale": torch.ones(4)}, r"x_scale must be \[\]"),
        ({"bias": torch.ones(1)}, r"bias must be \[K\]"),
        ({"bias": torch.ones(7)}, r"bias must be \[K\]"),
    ],
)
def test_scales_and_offsets_of_other_shapes_are_refused(changes, message):
    weight = torch.ones(16, 16)
    scale = fp8.weight_scale(weight)
    arguments = {"x_scale": torch.tensor(1.0), "bias": None, **changes}
    with pytest.raises(ValueError, match=message):
        fp8.linear_fp8(torch.ones(2, 16), fp8.to_e4m3(weight, scale[:, None]), scale, **arguments)


@pytest.mark.parametrize("shape", [(3,), (3, 0)])
def test_a_weight_without_channels_or_elements_has_no_scale(shape):
    with pytest.raises(ValueError, match="weight must be"):
        fp8.weight_scale(torch.ones(shape))
