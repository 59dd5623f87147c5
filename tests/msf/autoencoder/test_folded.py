"""The folded convolutions compute what the layers of the autoencoder compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from msf.autoencoder import KLAutoencoder
from msf.autoencoder.folded import FoldedConvolution, FoldedUpsample, fold_convolutions


def conv(n_in, n_out, dtype=torch.float64, **options):
    with torch.random.fork_rng():
        torch.manual_seed(n_in + 10 * n_out)
        return nn.Conv2d(n_in, n_out, **{"kernel_size": 3, "padding": 1, **options}).to(dtype)


def upsampled(layer, x):
    return layer(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (3, 4, 7, 4), (1, 5, 2, 11), (4, 2, 4, 4), (0, 2, 3, 3)]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_upsampling_is_exact_in_float64(shape, memory_format):
    layer = conv(shape[1], 6)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    folded = FoldedUpsample(layer).to(memory_format=memory_format)(x.to(memory_format=memory_format))
    torch.testing.assert_close(folded, upsampled(layer, x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 0}, {"kernel_size": 1, "padding": 0}, {"kernel_size": 5, "bias": False}]
)
@torch.no_grad()
def test_convolutions_are_exact_in_float64(options):
    layer = conv(3, 6, **options)
    x = torch.randn(2, 3, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    residual = torch.randn_like(layer(x))
    torch.testing.assert_close(FoldedConvolution(layer)(x, residual), layer(x) + residual, rtol=0, atol=1e-13)


@pytest.mark.parametrize("seed", range(8))
@torch.no_grad()
def test_random_sizes_agree_in_float32(seed):
    generator = torch.Generator().manual_seed(seed)
    n, n_in, n_out, height, width = (int(torch.randint(1, 70, (), generator=generator)) for _ in range(5))
    layer = conv(n_in, n_out, torch.float32, bias=bool(seed % 2))
    x = torch.randn(n, n_in, height % 14 + 1, width % 14 + 1, generator=generator)
    torch.testing.assert_close(FoldedUpsample(layer)(x), upsampled(layer, x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(FoldedConvolution(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("upsample", [False, True])
def test_gradients_are_those_of_the_layers(upsample):
    layer = conv(3, 4)
    folded = FoldedConvolution(layer, upsample=upsample)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    wanted = torch.autograd.grad((upsampled(layer, x) if upsample else layer(x)).square().sum(), (x, layer.weight))
    torch.testing.assert_close(torch.autograd.grad(folded(x).square().sum(), (x, folded.weight)), wanted)


@torch.no_grad()
def test_changed_weights_count_from_the_next_call_on():
    layer = conv(40, 40, torch.float32)
    folded, x = FoldedConvolution(layer), torch.randn(1, 40, 16, 16)
    folded(x)
    layer.weight.mul_(-2)
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-5, atol=1e-5)
    folded.load_state_dict(conv(40, 40, torch.float32, bias=True).state_dict())
    torch.testing.assert_close(folded(x), layer(x), rtol=1e-5, atol=1e-5)
    doubled = copy.deepcopy(folded).double()
    torch.testing.assert_close(doubled(x.double()), layer.double()(x.double()), rtol=0, atol=1e-13)


@torch.no_grad()
def test_bits_do_not_depend_on_the_maps_before():
    layer = conv(64, 64, torch.float32)
    small, large = torch.randn(1, 64, 2, 2), torch.randn(1, 64, 32, 32)
    used, fresh = FoldedConvolution(layer), FoldedConvolution(layer)
    used(small)
    assert torch.equal(used(large), fresh(large))
    assert torch.equal(used(small), FoldedConvolution(layer)(small))


@pytest.mark.parametrize(
    "options", [{"kernel_size": 5, "padding": 2}, {"padding": 0}, {"stride": 2}, {"padding_mode": "reflect"}]
)
def test_another_upsampling_convolution_is_refused(options):
    with pytest.raises(ValueError, match="conv must be 3x3"):
        FoldedUpsample(conv(2, 2, **options))


@pytest.mark.parametrize(
    "options", [{"dilation": 2}, {"groups": 2}, {"kernel_size": (3, 1)}, {"padding": "same"}, {"padding": 2}]
)
def test_another_convolution_is_refused(options):
    with pytest.raises(ValueError, match="conv must be square"):
        FoldedConvolution(conv(2, 2, **options))


def test_a_folded_autoencoder_gives_the_same_pictures_and_the_same_state_dict(make_model):
    plain = KLAutoencoder(make_model(block_out_channels=(8, 8, 16)))
    folded = KLAutoencoder(make_model(block_out_channels=(8, 8, 16))).fold()
    latents = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded.decode(latents), plain.decode(latents), rtol=1e-5, atol=1e-5)
    pictures = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(folded.encode(pictures), plain.encode(pictures), rtol=1e-5, atol=1e-5)
    n_folded = sum(isinstance(module, FoldedUpsample) for module in folded.model.modules())
    assert n_folded == 2
    assert not any(type(module) is nn.Conv2d for module in folded.model.modules())
    assert list(folded.model.state_dict()) == list(plain.model.state_dict())


def test_folding_again_changes_nothing(make_model):
    autoencoder = KLAutoencoder(make_model()).fold()
    before = [type(module) for module in autoencoder.model.modules()]
    assert fold_convolutions(autoencoder.model) == 0
    assert [type(module) for module in autoencoder.fold().model.modules()] == before


def test_upsampling_of_another_kind_is_left_alone():
    from diffusers.models.upsampling import Upsample2D

    layers = nn.Sequential(
        Upsample2D(4, use_conv=False),
        Upsample2D(4, use_conv_transpose=True),
        Upsample2D(4, use_conv=True, norm_type="rms_norm", eps=1e-5, elementwise_affine=True),
        Upsample2D(4, use_conv=True, interpolate=False),
        Upsample2D(4, use_conv=True, kernel_size=5, padding=2),
        Upsample2D(4, use_conv=True),
    )
    assert fold_convolutions(layers) == 1
    assert isinstance(layers[-1], FoldedUpsample)


@torch.no_grad()
def test_it_saves_the_arithmetic_that_it_promises():
    from torch.utils.flop_counter import FlopCounterMode

    layer = conv(8, 8, torch.float32)
    folded = FoldedUpsample(layer)
    x = torch.randn(1, 8, 64, 64)
    folded(x)
    counts = []
    for call in (lambda: upsampled(layer, x), lambda: folded(x)):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    plain, ours = counts
    assert ours / plain == pytest.approx(4 / 9)


@pytest.mark.slow
def test_the_published_autoencoder_folded_equals_diffusers_to_1e_4(make_model):
    config = {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    }  # fmt: skip
    model = make_model(**config).eval()
    generator = torch.Generator().manual_seed(0)
    latents, pictures = torch.randn(1, 4, 6, 5, generator=generator), torch.rand(1, 3, 48, 40, generator=generator)
    with torch.no_grad():
        decoded, encoded = model.decode(latents / 0.18215).sample, model.encode(pictures).latent_dist.mean * 0.18215
    folded = KLAutoencoder(model).fold()
    assert sum(isinstance(module, FoldedUpsample) for module in folded.model.modules()) == 3
    assert (folded.decode(latents) - decoded).abs().max() < 1e-4
    assert (folded.encode(pictures).mean - encoded).abs().max() < 1e-4
