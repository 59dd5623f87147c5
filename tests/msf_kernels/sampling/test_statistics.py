import math
from fractions import Fraction

import pytest
import torch

from msf_kernels import sampling
from msf_kernels.sampling import Mean, MeanEntropy, MeanVariance, Votes
from msf_kernels.sampling.statistics import tree_sum


def feed(statistic, values, lengths=(64, 64, 22)):
    """Give samples [N, S, ...] to a statistic in blocks."""
    accumulator = statistic.start(len(values), values[:, 0])
    first = 0
    for length in lengths:
        accumulator.update(torch.arange(len(values)), values[:, first : first + length])
        first += length
    assert first == values.shape[1]
    return accumulator.finish()


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [(150,), (64, 64, 22), (1,) * 150, (8, 2, 140)])
def test_moments_are_mean_and_variance_however_samples_come_in_blocks(dtype, lengths):
    values = normal(3, 150, 5, dtype=dtype)
    result = feed(MeanVariance(), values, lengths)
    torch.testing.assert_close(result["mean"], values.double().mean(1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(result["variance"], values.double().var(1), rtol=1e-12, atol=0)


def test_the_variance_survives_a_mean_that_is_far_larger():
    # E[x^2] - E[x]^2 in fp64 would lose all digits here.
    exact = [Fraction(10**9) + Fraction(i, 8) for i in range(-32, 32)]
    mean = sum(exact) / 64
    expected = sum((x - mean) ** 2 for x in exact) / 63
    values = torch.tensor([[float(x) for x in exact]], dtype=torch.float64)
    result = feed(MeanVariance(), values, (64,))
    assert float(result["variance"]) == pytest.approx(float(expected), rel=1e-12)
    result = feed(MeanVariance(), values, (8, 56))
    assert float(result["variance"]) == pytest.approx(float(expected), rel=1e-7)


def test_the_correction_chooses_between_unbiased_and_plain_variance():
    values = normal(2, 10)
    torch.testing.assert_close(
        feed(MeanVariance(correction=0), values, (10,))["variance"], values.double().var(1, False)
    )


def test_the_variance_of_one_sample_is_nan_when_it_shall_be_unbiased():
    assert feed(MeanVariance(), normal(2, 1), (1,))["variance"].isnan().all()
    assert (feed(MeanVariance(correction=0), normal(2, 1), (1,))["variance"] == 0).all()


def test_mean_is_the_mean():
    values = normal(3, 150, 2, 2)
    torch.testing.assert_close(feed(Mean(), values)["mean"], values.double().mean(1), rtol=1e-13, atol=1e-13)


def test_mean_entropy_is_the_mean_of_each_samples_entropy():
    probability = torch.softmax(normal(3, 150, 7, dtype=torch.float64), 2)
    expected = -(probability * probability.log()).sum(2).mean(1)
    torch.testing.assert_close(feed(MeanEntropy(), probability)["mean"], expected, rtol=1e-13, atol=0)


def test_mean_entropy_runs_from_zero_to_the_logarithm_of_the_classes():
    certain = torch.tensor([1.0, 0.0, 0.0]).expand(1, 150, 3)
    assert feed(MeanEntropy(), certain)["mean"].item() == 0.0
    uniform = torch.full((1, 150, 4), 0.25)
    assert feed(MeanEntropy(), uniform)["mean"].item() == pytest.approx(math.log(4), rel=1e-14)


def test_votes_count_the_nearest_class_and_ties_go_to_the_lowest():
    distance = torch.tensor([[[1.0, 0.0, 2.0], [0.5, 0.5, 0.5], [2.0, 1.0, 1.0]]])
    result = feed(Votes(), distance, (2, 1))
    assert result["count"].tolist() == [[1, 2, 0]]
    torch.testing.assert_close(result["share"], torch.tensor([[1, 2, 0]]).double() / 3)


def test_votes_count_the_largest_score_or_the_given_label():
    score = torch.tensor([[[1.0, 0.0, 2.0], [0.5, 0.5, 0.1], [2.0, 1.0, 1.0]]])
    assert feed(Votes(rule="argmax"), score, (3,))["count"].tolist() == [[2, 0, 1]]
    label = torch.tensor([[2, 2, 0], [1, 1, 1]])
    assert feed(Votes(rule="label", n_classes=4), label, (3,))["count"].tolist() == [[1, 0, 2, 0], [0, 3, 0, 0]]


@pytest.mark.parametrize("statistic", [MeanVariance(), Mean(), MeanEntropy(), Votes()])
def test_bits_do_not_depend_on_the_other_inputs_of_an_update(statistic):
    # Odd sizes: vector instructions leave remainders, whose rounding must not differ.
    values = torch.softmax(normal(37, 150, 7), 2)
    together = feed(statistic, values)
    for row in (0, 17, 36):
        alone = feed(statistic, values[row : row + 1].clone())
        for name, tensor in alone.items():
            assert torch.equal(tensor, together[name][row : row + 1])


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 63, 64])
def test_tree_sums_are_sums(length):
    values = torch.arange(length * 6).reshape(3, length, 2).double()
    assert torch.equal(tree_sum(values, 1), values.sum(1))


def test_means_of_whole_numbers_are_refused():
    for statistic in (Mean(), MeanVariance()):
        with pytest.raises(TypeError, match="floating-point readout; got torch.int64"):
            statistic.start(2, torch.zeros(4, dtype=torch.int64))


def test_votes_refuse_a_readout_of_the_wrong_shape():
    with pytest.raises(ValueError, match=r"must be \[B, n_classes\] for votes by argmin; got \[4\]"):
        Votes().start(2, torch.zeros(4))
    with pytest.raises(ValueError, match=r"must be \[B\] for votes by label; got \[4, 2\]"):
        Votes(rule="label", n_classes=2).start(2, torch.zeros(4, 2))


def test_the_old_name_of_mean_and_variance_warns():
    with pytest.warns(DeprecationWarning, match="Moments is now MeanVariance"):
        assert sampling.Moments is MeanVariance
