"""Decoding in parts: batches give what the whole gives, tiles come close."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from msf.autoencoder import KLAutoencoder
from msf.autoencoder.losses import psnr
from msf.autoencoder.tiles import decode_in_tiles, tile_starts


@pytest.fixture
def autoencoder(make_model):
    return KLAutoencoder(make_model()).fold()


@pytest.fixture
def latents():
    return torch.randn(5, 4, 24, 20, generator=torch.Generator().manual_seed(0))


def count_decoded(autoencoder, monkeypatch):
    shapes = []
    decode = autoencoder.model.decode
    monkeypatch.setattr(autoencoder.model, "decode", lambda z: shapes.append(tuple(z.shape)) or decode(z))
    return shapes


def test_batches_that_fit_give_the_whole(autoencoder, latents, monkeypatch):
    whole = autoencoder.decode(latents)
    shapes = count_decoded(autoencoder, monkeypatch)
    parts = autoencoder.decode(latents, memory_bytes=2 * autoencoder.decode_bytes(24, 20))
    assert [shape[0] for shape in shapes] == [2, 2, 2]  # the last part is filled up
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_without_a_limit_nothing_is_tiled(autoencoder, latents, monkeypatch):
    monkeypatch.setattr("msf.autoencoder.kl.DEFAULT_MEMORY_BYTES", 1)
    shapes = count_decoded(autoencoder, monkeypatch)
    autoencoder.decode(latents)
    assert shapes == [(1, 4, 24, 20)] * 5


def test_pictures_are_encoded_in_parts(autoencoder, monkeypatch):
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = autoencoder.encode(images)
    monkeypatch.setattr("msf.autoencoder.kl.DEFAULT_MEMORY_BYTES", 2 * autoencoder.decode_bytes(8, 8))
    parts = autoencoder.encode(images)
    torch.testing.assert_close(parts.mean, whole.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts.std, whole.std, rtol=1e-5, atol=1e-5)


def test_a_picture_that_does_not_fit_is_tiled(autoencoder, latents, monkeypatch):
    shapes = count_decoded(autoencoder, monkeypatch)
    limit = autoencoder.decode_bytes(12, 12)
    decoded = autoencoder.decode(latents[:2], memory_bytes=limit)
    assert decoded.shape == (2, 3, 48, 40)
    assert {shape[2:] for shape in shapes} == {(12, 12)}
    assert all(autoencoder.decode_bytes(*shape[2:]) <= limit for shape in shapes)


def test_a_limit_below_the_smallest_tile_says_what_is_needed(autoencoder, latents):
    with pytest.raises(ValueError, match=rf"memory_bytes must be at least {autoencoder.decode_bytes(8, 8)}, .* got 1"):
        autoencoder.decode(latents, memory_bytes=1)


def test_a_limit_that_is_no_number_of_bytes_is_refused(autoencoder, latents):
    with pytest.raises(TypeError, match="memory_bytes must be an integer"):
        autoencoder.decode(latents, memory_bytes=1e9)
    with pytest.raises(ValueError, match="memory_bytes must be >= 1"):
        autoencoder.decode(latents, memory_bytes=0)


@pytest.mark.parametrize("size", [(24, 20), (9, 33), (7, 5), (8, 8), (17, 8)])
def test_tiles_of_a_decoder_without_neighbourhood_are_the_whole(size):
    def nearest(z):
        return functional.interpolate(z, scale_factor=4.0, mode="nearest")

    z = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(decode_in_tiles(nearest, z, 8, 4), nearest(z), rtol=1e-5, atol=1e-6)


def test_tiles_blend_without_seams():
    """Tiles that disagree by a constant meet in steps that are small against it."""
    values = iter((0.0, 1.0))

    def constant(z):
        return torch.full((1, 1, z.shape[2] * 2, z.shape[3] * 2), next(values))

    row = decode_in_tiles(constant, torch.zeros(1, 1, 8, 14), 8, 2)[0, 0, 0]
    assert row[0] == 0
    assert row[-1] == 1
    assert (row.diff() >= 0).all()
    assert row.diff().max() <= 0.5


def test_without_norms_a_tile_decodes_its_inside_as_the_whole_does(make_model):
    """Norms are what a tile computes differently everywhere; convolutions differ near its edges only."""
    model = make_model(mid_block_add_attention=False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.Identity())
    autoencoder = KLAutoencoder(model).fold()
    z = torch.randn(1, 4, 60, 60, generator=torch.Generator().manual_seed(0))
    whole = autoencoder.decode(z)
    tiles = autoencoder.decode(z, memory_bytes=autoencoder.decode_bytes(40, 40))
    assert not torch.allclose(tiles, whole, rtol=1e-4, atol=1e-4)
    for rows in (slice(0, 40), slice(-40, None)):
        for columns in (slice(0, 40), slice(-40, None)):
            torch.testing.assert_close(tiles[:, :, rows, columns], whole[:, :, rows, columns], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("length", "tile"), [(1, 8), (8, 8), (9, 8), (33, 8), (100, 16), (17, 1)])
def test_tiles_cover_the_axis_overlap_and_have_one_size(length, tile):
    starts = tile_starts(length, tile)
    assert starts[0] == 0
    assert starts[-1] + tile == max(length, tile)
    steps = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    assert all(0 < step <= max(1, tile - tile // 4) for step in steps)


def test_the_estimate_grows_with_the_picture_and_halves_with_the_dtype(autoencoder):
    full = autoencoder.decode_bytes(16, 16)
    assert autoencoder.decode_bytes(32, 16) > 2 * full - 1
    assert autoencoder.to(dtype=torch.bfloat16).decode_bytes(16, 16) * 2 == full


def test_psnr_is_that_of_its_definition():
    pictures = torch.zeros(2, 1, 4, 4)
    noisy = pictures + torch.tensor([0.2, 0.02])[:, None, None, None]
    torch.testing.assert_close(psnr(noisy, pictures), torch.tensor([20.0, 40.0]), rtol=1e-4, atol=1e-4)
