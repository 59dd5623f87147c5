import pytest
import torch

from msf.training.losses import symmetric_loss


def random_pair(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator), torch.randn(*shape, generator=generator)


def test_the_terms_are_means_over_their_own_channels_and_the_total_weighs_them():
    v, target = random_pair(3, 5, 4, 4)
    loss = symmetric_loss(v, target, image_channels=2, image_weight=0.7)
    error = (v.double() - target.double()) ** 2
    image, semantic = error[:, :2].mean(), error[:, 2:].mean()
    torch.testing.assert_close(loss.image.double(), image, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.semantic.double(), semantic, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.total.double(), 0.7 * image + 0.3 * semantic, rtol=1e-6, atol=0)


def test_the_weight_at_its_ends_leaves_one_stream_without_gradient():
    v, target = random_pair(2, 3, 4, 4)
    for weight, silent in ((1.0, slice(1, 3)), (0.0, slice(0, 1))):
        leaf = v.clone().requires_grad_()
        symmetric_loss(leaf, target, image_channels=1, image_weight=weight).total.backward()
        assert leaf.grad[:, silent].abs().max() == 0
        assert leaf.grad.abs().max() > 0


def test_a_bfloat16_velocity_is_compared_in_float32():
    v, target = random_pair(2, 3, 8, 8)
    loss = symmetric_loss(v.bfloat16(), target, image_channels=1, image_weight=0.5)
    expected = symmetric_loss(v.bfloat16().float(), target, image_channels=1, image_weight=0.5)
    assert loss.total.dtype == torch.float32
    assert loss.total == expected.total


@pytest.mark.parametrize(
    ("shape", "channels", "weight", "text"),
    [
        ((2, 4, 4, 4), 1, 0.5, "alike"),
        ((2, 3, 4, 4), 3, 0.5, r"image_channels must be in \[1, 3\).*got 3"),
        ((2, 3, 4, 4), 0, 0.5, "image_channels"),
        ((2, 3, 4, 4), 1, 1.5, r"image_weight must be in \[0, 1\]; got 1.5"),
    ],
)
def test_what_does_not_fit_is_named(shape, channels, weight, text):
    with pytest.raises(ValueError, match=text):
        symmetric_loss(torch.zeros(2, 3, 4, 4), torch.zeros(shape), channels, weight)
