"""What the training minimises."""

import pytest
import torch

from msf.autoencoder.losses import autoencoder_loss, reconstruction_loss


@pytest.fixture
def pictures():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_a_perfect_reconstruction_costs_nothing(pictures):
    assert reconstruction_loss(pictures, pictures, gradient_weight=1.0) == 0


def test_a_standard_normal_posterior_costs_nothing(pictures):
    latents = torch.zeros(2, 4, 8, 8)
    assert autoencoder_loss(pictures, pictures, latents, latents, kl_weight=1.0, gradient_weight=1.0) == 0


def test_the_divergence_is_that_of_two_normal_distributions(pictures):
    mean, std = torch.full((2, 4, 8, 8), 0.7), torch.full((2, 4, 8, 8), 0.4)
    loss = autoencoder_loss(pictures, pictures, mean, 2 * std.log(), kl_weight=0.5, gradient_weight=0.0)
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.7, 0.4), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(loss, 0.5 * wanted)


def test_a_wrong_hue_costs_more_than_texture_of_the_same_size(pictures):
    texture = 0.1 * (2 * torch.randint(0, 2, pictures.shape, generator=torch.Generator().manual_seed(1)) - 1)
    hue = torch.tensor([0.1, -0.1, 0.1])[:, None, None].expand_as(pictures)
    losses = [float(reconstruction_loss(pictures + error, pictures, gradient_weight=0.0)) for error in (hue, texture)]
    assert losses[0] == pytest.approx(0.1, rel=1e-4)
    assert losses[0] > 1.5 * losses[1]


def test_a_lost_edge_costs_more_with_the_gradient_term():
    edge = torch.zeros(1, 3, 32, 32)
    edge[..., 16:] = 1
    blurred = torch.linspace(0, 1, 32).expand_as(edge)
    plain, with_gradients = (float(reconstruction_loss(blurred, edge, gradient_weight=weight)) for weight in (0.0, 1.0))
    assert with_gradients > 1.1 * plain


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 31)])
def test_small_and_odd_pictures_have_a_finite_loss(size):
    loss = reconstruction_loss(torch.ones(1, 3, *size), torch.zeros(1, 3, *size), gradient_weight=1.0)
    torch.testing.assert_close(loss, torch.tensor(1.0))
