import pytest
import torch

from msf.flow.path import SymmetricProbPath
from msf.training.losses import symmetric_loss
from msf.training.weighting import weighted

PATH = SymmetricProbPath(sigma_min=0.0)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("t", [torch.tensor([0.1, 0.6, 1.0]), torch.tensor([[0.2, 0.9], [1.0, 0.5], [0.0, 1.0]])])
def test_the_endpoint_loss_is_that_of_the_picture_and_the_code_that_a_velocity_leads_to(t):
    t = t.double()
    image, code, guess = randn(3, 2, 4, 4), randn(3, 3, 4, 4, seed=1), randn(3, 5, 4, 4, seed=2)
    sample = PATH.sample(image, code, t, randn(3, 2, 4, 4, seed=3), randn(3, 3, 4, 4, seed=4))
    loss = symmetric_loss(*(weighted(v, t, 2, "endpoint") for v in (guess, sample.dz_t)), 2, 0.7)
    times = t[:, None].expand(3, 2) if t.ndim == 1 else t
    t_image, t_semantic = times[:, 0, None, None, None], times[:, 1, None, None, None]
    picture = sample.z_t[:, :2] + (1 - t_image) * guess[:, :2]
    label = sample.z_t[:, 2:] - t_semantic * guess[:, 2:]
    assert float(loss.image) == pytest.approx(float((picture - image).square().mean()), rel=1e-9)
    assert float(loss.semantic) == pytest.approx(float((label - code).square().mean()), rel=1e-9)


def test_what_no_network_can_know_has_no_gradient():
    v = randn(2, 3, 4, 4).requires_grad_()
    t = torch.tensor([[1.0, 0.5], [0.5, 0.0]]).double()
    symmetric_loss(weighted(v, t, 1, "endpoint"), torch.zeros_like(v), 1, 0.5).total.backward()
    assert v.grad[0, :1].abs().max() == v.grad[1, 1:].abs().max() == 0
    assert v.grad[0, 1:].abs().min() > 0
    assert v.grad[1, :1].abs().min() > 0


def test_the_published_loss_is_left_as_it_is():
    v = randn(2, 3, 4, 4)
    assert weighted(v, torch.rand(2), 1, "velocity") is v


def test_a_bfloat16_velocity_is_weighed_in_float32():
    v, t = randn(2, 3, 4, 4).bfloat16(), torch.tensor([0.3, 0.7])
    expected = torch.cat(
        [v[:, :1].float() * (1 - t)[:, None, None, None], v[:, 1:].float() * t[:, None, None, None]], 1
    )
    assert torch.equal(weighted(v, t, 1, "endpoint"), expected)
