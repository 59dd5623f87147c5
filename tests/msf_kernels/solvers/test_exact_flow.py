import math

import pytest
import torch

from msf_kernels.solvers import EULER, HEUN, integrate, integrate_adaptive, uniform_grid
from msf_kernels.testing import GaussianMixtureFlow

N_DRAWS = 3000
N_PICTURES = 8


@pytest.fixture(scope="module")
def flow():
    """Four overlapping classes in 64 dimensions with the corners of a tetrahedron as codes."""
    generator = torch.Generator().manual_seed(0)
    means = 0.25 * torch.randn(4, 64, dtype=torch.float64, generator=generator)
    codes = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64)
    return GaussianMixtureFlow(means, codes, sigma=1.0)


@pytest.fixture(scope="module")
def pictures(flow):
    image, _ = flow.sample(N_PICTURES, torch.Generator().manual_seed(1))
    return image


@pytest.fixture(scope="module")
def starts(flow, pictures):
    """N_DRAWS noise draws for each picture."""
    return flow.classification_start(pictures.repeat_interleave(N_DRAWS, 0), torch.Generator().manual_seed(2))


def vote_shares(flow, state):
    votes = torch.nn.functional.one_hot(flow.nearest_label(state), flow.n_classes).double()
    return votes.reshape(N_PICTURES, N_DRAWS, -1).mean(dim=1)


def standard_error(share):
    return (share * (1 - share) / N_DRAWS).sqrt()


def test_one_euler_step_returns_the_mean_code_of_the_posterior_whatever_the_noise(flow, pictures, starts):
    state = integrate(flow.velocity_field, starts, (1.0, 0.0), EULER).state
    mean_code = flow.posterior(pictures) @ flow.codes
    error = state[:, flow.image_channels :] - mean_code.repeat_interleave(N_DRAWS, 0)
    assert error.abs().max() < 1e-6
    # So its votes are all for one class, also where the posterior is undecided.
    shares = vote_shares(flow, state)
    assert bool(((shares == 0) | (shares == 1)).all())
    assert (shares - flow.posterior(pictures)).abs().max() > 0.3


def test_votes_of_the_conditional_flow_are_the_posterior(flow, pictures, starts):
    state = integrate(flow.held_image_field, starts, uniform_grid(32, 1.0, 0.0), HEUN).state
    posterior = flow.posterior(pictures)
    deviation = (vote_shares(flow, state) - posterior).abs() / standard_error(posterior)
    assert deviation.max() < 4
    assert torch.equal(state[:, : flow.image_channels], starts[:, : flow.image_channels])


def test_votes_of_the_joint_flow_are_biased_towards_less_confidence_at_any_number_of_steps(flow, pictures, starts):
    posterior = flow.posterior(pictures)
    shares = {}
    for n_steps in (16, 32):
        state = integrate(flow.velocity_field, starts, uniform_grid(n_steps, 1.0, 0.0), HEUN).state
        shares[n_steps] = vote_shares(flow, state)
        bias = shares[n_steps] - posterior
        assert (bias.abs() / standard_error(posterior)).max() > 15
        assert 0.05 < bias.abs().max() < 0.2
        assert (shares[n_steps].max(1).values - posterior.max(1).values).mean() < -0.03
    # Twice the steps do not help.
    assert (shares[32] - shares[16]).abs().max() < 0.02


def test_an_adaptive_solve_of_the_conditional_flow_gives_the_posterior_too(flow, pictures, starts):
    solution = integrate_adaptive(flow.held_image_field, starts, 1.0, 0.01, rtol=1e-2, atol=1e-2)
    posterior = flow.posterior(pictures)
    deviation = (vote_shares(flow, solution.state) - posterior).abs() / standard_error(posterior)
    assert solution.status.is_success
    assert deviation.max() < 4
    assert solution.nfe.min() < solution.nfe.max()


@pytest.fixture(scope="module")
def small_flow():
    """Three classes in four dimensions with variance 0.25."""
    generator = torch.Generator().manual_seed(3)
    means = 2.0 * torch.randn(3, 4, dtype=torch.float64, generator=generator)
    codes = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1]], dtype=torch.float64)
    return GaussianMixtureFlow(means, codes, sigma=0.5)


def generated_moments(flow, field, n_per_class):
    labels = torch.arange(3).repeat_interleave(n_per_class)
    start = flow.generation_start(labels, torch.Generator().manual_seed(4))
    state = integrate(field, start, uniform_grid(64), HEUN).state
    pictures = state[:, :4].reshape(3, n_per_class, 4)
    return pictures.mean(1), pictures.var(1).mean(1)


def test_conditional_generation_has_the_means_and_variances_of_the_classes(small_flow):
    n = 10_000
    mean, variance = generated_moments(small_flow, small_flow.held_semantic_field, n)
    assert ((mean - small_flow.means).abs() / (0.5 / math.sqrt(n))).max() < 4
    assert ((variance - 0.25).abs() / (0.25 * math.sqrt(2 / (4 * n)))).max() < 4


def test_joint_generation_has_too_much_variance(small_flow):
    n = 10_000
    _, variance = generated_moments(small_flow, small_flow.velocity_field, n)
    assert ((variance - 0.25) / (0.25 * math.sqrt(2 / (4 * n)))).max() > 4


def test_reversing_the_joint_flow_returns_to_the_start(small_flow):
    start = small_flow.generation_start(torch.tensor([0, 1, 2]), torch.Generator().manual_seed(5))
    # Away from t = 0, where the semantic velocity is only a limit.
    there = integrate_adaptive(small_flow.velocity_field, start, 0.05, 1.0, rtol=1e-9, atol=1e-10).state
    back = integrate_adaptive(small_flow.velocity_field, there, 1.0, 0.05, rtol=1e-9, atol=1e-10).state
    assert (back - start).abs().max() < 1e-6
