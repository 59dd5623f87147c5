import pytest
import torch
from torch.testing import assert_close

from msf.data import apply_flips, draw_flips, prepare_images, resize_images


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def levels(*shape):
    return torch.randint(0, 256, shape, generator=rng(), dtype=torch.uint8)


def test_levels_become_the_range_minus_one_to_one_exactly():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    prepared = prepare_images(images, 16, 1)
    assert prepared.shape == (1, 1, 16, 16)
    assert torch.equal(prepared.flatten(), torch.arange(256.0) / 127.5 - 1)


def test_the_channel_axis_moves_to_the_front():
    images = levels(4, 6, 6, 3)
    prepared = prepare_images(images, 6, 3)
    assert torch.equal(prepared[:, 2], images[..., 2] / 127.5 - 1)
    assert prepared.is_contiguous()


def test_bytes_and_floats_of_the_same_picture_agree():
    images = levels(4, 28, 28, 3)
    floats = images.permute(0, 3, 1, 2) / 127.5 - 1
    assert_close(prepare_images(images, 32, 3), prepare_images(floats, 32, 3), rtol=0, atol=1e-6)
    assert_close(prepare_images(floats.double(), 32, 3), prepare_images(floats, 32, 3), rtol=0, atol=1e-6)


def test_grey_is_repeated_and_colour_becomes_luminance_only_when_told():
    grey = levels(2, 5, 5)
    prepared = prepare_images(grey, 5, 3)
    assert all(torch.equal(prepared[:, c], grey / 127.5 - 1) for c in range(3))
    colour = levels(2, 5, 5, 3)
    with pytest.raises(ValueError, match="images have 3 channels and the network takes 1.*allow_grey=True"):
        prepare_images(colour, 5, 1)
    luminance = (0.299 * colour[..., 0] + 0.587 * colour[..., 1] + 0.114 * colour[..., 2]) / 127.5 - 1
    assert_close(prepare_images(colour, 5, 1, allow_grey=True)[:, 0], luminance, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [16, 28, 32, 56])
def test_resizing_keeps_constants_means_and_the_range(size):
    constant = torch.full((1, 28, 28), 200, dtype=torch.uint8)
    assert_close(prepare_images(constant, size, 1), torch.full((1, 1, size, size), 200 / 127.5 - 1))
    images = levels(8, 28, 28)
    prepared = prepare_images(images, size, 1)
    assert_close(prepared.mean(), (images / 127.5 - 1).mean(), rtol=0, atol=0.02)
    assert prepared.abs().max() <= 1


def test_shrinking_is_antialiased():
    stripes = torch.zeros(1, 64, 64, dtype=torch.uint8)
    stripes[:, :, ::2] = 255
    assert prepare_images(stripes, 16, 1)[..., 1:-1].abs().max() < 0.05  # without a filter: +-1


def test_sixteen_bits_are_all_kept():
    images = torch.tensor([[[0, 1], [32768, 65535]]], dtype=torch.int32).to(torch.uint16)
    expected = torch.tensor([0, 1, 32768, 65535]) / 32767.5 - 1
    assert torch.equal(prepare_images(images, 2, 1).flatten(), expected)
    assert prepare_images(images, 4, 3).shape == (1, 3, 4, 4)


def test_pictures_that_are_not_square_become_so():
    ramp = torch.linspace(-1, 1, 40).expand(1, 1, 10, 40)
    prepared = prepare_images(ramp, 8, 1)
    assert prepared.shape == (1, 1, 8, 8)
    assert_close(prepared[0, 0, 0], prepared[0, 0, 7])
    assert (prepared[0, 0, 0].diff() > 0.2).all()


def test_resizing_to_the_same_size_changes_nothing():
    images = torch.rand(2, 3, 8, 8, generator=rng())
    assert resize_images(images, 8) is images
    assert resize_images(images, 12).shape == (2, 3, 12, 12)
    with pytest.raises(ValueError, match="size must be >= 1; got 0"):
        resize_images(images, 0)


def test_a_picture_does_not_depend_on_its_batch():
    images = levels(5, 28, 28, 3)
    assert torch.equal(prepare_images(images, 32, 3)[3:4], prepare_images(images[3:4], 32, 3))


def test_an_empty_batch_stays_empty():
    assert prepare_images(levels(0, 28, 28, 3), 32, 3).shape == (0, 3, 32, 32)
    assert prepare_images(torch.zeros(0, 1, 28, 28), 32, 3).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (torch.full((1, 1, 4, 4), 2.0), ValueError, r"in \[-1, 1\]; got values from 2.0 to 2.0"),
        (torch.full((1, 1, 4, 4), float("nan")), ValueError, "must be finite .*nan"),
        (torch.tensor([0.0, float("inf")]).repeat(8).reshape(1, 1, 4, 4), ValueError, "must be finite .*inf"),
        (torch.zeros(2, 4, 4), ValueError, r"floating-point images must be \[N, C, H, W\].*got \[2, 4, 4\]"),
        (torch.zeros(2, 2, 4, 4), ValueError, r"C = 1 or 3; got \[2, 2, 4, 4\]"),
        (torch.zeros(2, 3, 0, 4), ValueError, "H, W >= 1"),
        (
            torch.zeros(2, 4, 4, 2, dtype=torch.uint16),
            ValueError,
            r"uint16 images must be \[N, H, W\].*got \[2, 4, 4, 2\]",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), ValueError, r"uint8 images must be \[N, H, W\] or \[N, H, W, C\]"),
        (torch.zeros(4, 4, dtype=torch.uint8), ValueError, "uint8 images"),
        (torch.zeros(2, 4, 4, dtype=torch.int64), TypeError, "uint8, uint16, or floating point.*got torch.int64"),
        ([[0]], TypeError, "torch tensor or a NumPy array; got list"),
    ],
)
def test_what_is_wrong_with_pictures_is_named(images, error, text):
    with pytest.raises(error, match=text):
        prepare_images(images, 8, 3)


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (8, 2)])
def test_wrong_targets_are_refused(size, channels):
    with pytest.raises(ValueError, match="size must be >= 1 and channels 1 or 3"):
        prepare_images(levels(1, 8, 8), size, channels)


def test_flips_mirror_each_picture_on_its_own_as_chosen():
    images = torch.randn(4, 1, 3, 3, generator=rng())
    flips = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    flipped = apply_flips(images, flips)
    for number, axes in enumerate([(), (2,), (1,), (1, 2)]):
        assert torch.equal(flipped[number], images[number].flip(axes))


def test_all_four_mirrorings_are_drawn_equally_often():
    flips = draw_flips(4000, rng(1))
    counts = (flips[:, 0].long() + 2 * flips[:, 1].long()).bincount(minlength=4)
    assert ((counts / 4000 - 0.25).abs() < 4 * (0.25 * 0.75 / 4000) ** 0.5).all()


def test_flips_are_a_function_of_the_generator():
    assert torch.equal(draw_flips(10, rng(2)), draw_flips(10, rng(2)))
    assert not torch.equal(draw_flips(10, rng(2)), draw_flips(10, rng(3)))
