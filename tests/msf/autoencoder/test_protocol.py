"""Every autoencoder keeps the same promises."""

import pytest
import torch

from msf.autoencoder import KLAutoencoder, LatentPosterior, PixelIdentity, load_autoencoder
from msf.config import AutoencoderConfig


@pytest.fixture(params=["pixels", "kl", "kl folded"])
def autoencoder(request, make_model):
    if request.param == "pixels":
        return PixelIdentity(3)
    kl = KLAutoencoder(make_model())
    return kl.fold() if request.param == "kl folded" else kl


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_latents_have_the_announced_shape_and_decode_to_the_pictures_shape(autoencoder, images):
    posterior = autoencoder.encode(images)
    wanted = (3, *autoencoder.latent_shape(8, 12))
    assert posterior.mean.shape == posterior.std.shape == wanted
    assert wanted[2:] == (8 // autoencoder.down_factor, 12 // autoencoder.down_factor)
    assert autoencoder.decode(posterior.mode()).shape == images.shape


def test_results_are_float32_and_contiguous_whatever_comes_in(autoencoder, images):
    posterior = autoencoder.encode(images.to(memory_format=torch.channels_last).half())
    decoded = autoencoder.decode(posterior.mean.double())
    assert posterior.mean.dtype == posterior.std.dtype == decoded.dtype == torch.float32
    assert posterior.mean.is_contiguous()
    assert decoded.is_contiguous()


def test_a_picture_does_not_depend_on_its_neighbours(autoencoder, images):
    whole, alone = autoencoder.encode(images), autoencoder.encode(images[1:2])
    torch.testing.assert_close(whole.mean[1:2], alone.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        autoencoder.decode(whole.mean)[1:2], autoencoder.decode(alone.mean), rtol=1e-5, atol=1e-5
    )


def test_no_batch_at_all_is_a_batch(autoencoder, images):
    latents = autoencoder.encode(images[:0]).mean
    assert latents.shape == (0, *autoencoder.latent_shape(8, 12))
    assert autoencoder.decode(latents).shape == (0, 3, 8, 12)


def test_nothing_takes_gradients(autoencoder, images):
    latents = autoencoder.encode(images.requires_grad_()).mean.requires_grad_()
    decoded = autoencoder.decode(latents)
    assert not decoded.requires_grad


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (lambda a: a.encode(torch.zeros(3, 8, 8)), "images must be"),
        (lambda a: a.encode(torch.zeros(1, 5, 8, 8)), "images must have"),
        (lambda a: a.decode(torch.zeros(1, 5, 8, 8)), "latents must have"),
        (lambda a: a.decode(torch.zeros(4, 8, 8)), "latents must be"),
        (lambda a: a.latent_shape(0, 8), "height must be a positive multiple"),
        (lambda a: a.latent_shape(8, -8), "width must be a positive multiple"),
    ],
)
def test_another_shape_is_named(autoencoder, call, wanted):
    with pytest.raises(ValueError, match=wanted):
        call(autoencoder)


def test_whole_numbers_are_no_pictures(autoencoder):
    with pytest.raises(TypeError, match="images must have dtype"):
        autoencoder.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_size_that_cannot_be_encoded_names_sizes_that_can(make_model):
    autoencoder = KLAutoencoder(make_model(block_out_channels=(8, 8, 8)))
    with pytest.raises(ValueError, match="width must be a positive multiple of 4, such as 24 or 28; got 27"):
        autoencoder.encode(torch.zeros(1, 3, 8, 27))


def test_pixels_are_their_own_latents(images):
    posterior = PixelIdentity(3).encode(images)
    assert torch.equal(posterior.sample(torch.Generator()), images)
    assert not posterior.std.any()
    assert torch.equal(PixelIdentity(3).decode(posterior.mode()), images)


def test_pixel_fingerprints_differ_by_channels():
    assert PixelIdentity(1).fingerprint == PixelIdentity(1).fingerprint != PixelIdentity(3).fingerprint


def test_samples_have_the_posteriors_mean_and_deviation():
    posterior = LatentPosterior(torch.full((4, 2, 50, 50), 3.0), torch.full((4, 2, 50, 50), 0.5))
    drawn = posterior.sample(torch.Generator().manual_seed(1))
    assert abs(drawn.mean() - 3) < 0.02
    assert abs(drawn.std() - 0.5) < 0.02
    assert torch.equal(drawn, posterior.sample(torch.Generator().manual_seed(1)))


def test_samples_take_given_noise():
    posterior = LatentPosterior(torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0))
    assert torch.equal(posterior.sample(torch.ones(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 3.0))
    with pytest.raises(ValueError, match="noise must have the shape of the latents"):
        posterior.sample(torch.ones(1, 1, 2, 3))


def test_the_configuration_decides_which_autoencoder_it_is(tmp_path, make_model):
    KLAutoencoder(make_model()).save_pretrained(tmp_path)
    assert load_autoencoder(AutoencoderConfig(), 1).latent_channels == 1
    named = AutoencoderConfig(name="kl", source=str(tmp_path))
    assert load_autoencoder(named, 3).down_factor == 2
    elsewhere = AutoencoderConfig(name="kl", source="/nowhere")
    assert load_autoencoder(elsewhere, 3, folder=tmp_path).fingerprint == load_autoencoder(named, 3).fingerprint
