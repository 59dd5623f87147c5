"""The sub-pixel form computes what upsampling and convolving computes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from msf.autoencoder import KLAutoencoder
from msf.autoencoder.folded import SubpixelUpsample, fold_upsampling


def conv(n_in, n_out, dtype=torch.float64, **options):
    with torch.random.fork_rng():
        torch.manual_seed(n_in + 10 * n_out)
        return nn.Conv2d(n_in, n_out, **{"kernel_size": 3, "padding": 1, **options}).to(dtype)


def upsampled(layer, x):
    return layer(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 5), (3, 4, 7, 4), (1, 5, 2, 11), (4, 2, 4, 4), (0, 2, 3, 3)])
def test_it_is_exact_in_float64(shape, memory_format):
    layer = conv(shape[1], 6)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    folded = SubpixelUpsample(layer).to(memory_format=memory_format)(x.to(memory_format=memory_format))
    torch.testing.assert_close(folded, upsampled(layer, x), rtol=0, atol=1e-14)


@pytest.mark.parametrize("seed", range(8))
def test_random_sizes_agree_in_float32(seed):
    generator = torch.Generator().manual_seed(seed)
    n, n_in, n_out, height, width = (int(torch.randint(1, 14, (), generator=generator)) for _ in range(5))
    layer = conv(n_in, n_out, torch.float32, bias=bool(seed % 2))
    x = torch.randn(n, n_in, height, width, generator=generator)
    torch.testing.assert_close(SubpixelUpsample(layer)(x), upsampled(layer, x), rtol=1e-5, atol=1e-5)


def test_the_result_is_channels_last():
    layer = SubpixelUpsample(conv(4, 6))
    assert layer(torch.randn(2, 4, 3, 5, dtype=torch.float64)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "options", [{"kernel_size": 5, "padding": 2}, {"padding": 0}, {"stride": 2}, {"padding_mode": "reflect"}]
)
def test_another_convolution_is_refused(options):
    with pytest.raises(ValueError, match="conv must be 3x3"):
        SubpixelUpsample(conv(2, 2, **options))


def test_a_folded_decoder_gives_the_same_pictures_and_the_same_state_dict(make_model):
    plain = KLAutoencoder(make_model(block_out_channels=(8, 8, 16)))
    folded = KLAutoencoder(make_model(block_out_channels=(8, 8, 16))).fold()
    latents = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded.decode(latents), plain.decode(latents), rtol=1e-5, atol=1e-5)
    n_folded = sum(isinstance(module, SubpixelUpsample) for module in folded.model.modules())
    assert n_folded == 2
    assert list(folded.model.state_dict()) == list(plain.model.state_dict())


def test_folding_again_changes_nothing(make_model):
    autoencoder = KLAutoencoder(make_model()).fold()
    before = [type(module) for module in autoencoder.model.modules()]
    assert fold_upsampling(autoencoder.model) == 0
    assert [type(module) for module in autoencoder.fold().model.modules()] == before


def test_layers_of_another_kind_are_left_alone():
    from diffusers.models.upsampling import Upsample2D

    layers = nn.Sequential(
        Upsample2D(4, use_conv=False),
        Upsample2D(4, use_conv_transpose=True),
        Upsample2D(4, use_conv=True, norm_type="rms_norm", eps=1e-5, elementwise_affine=True),
        Upsample2D(4, use_conv=True, interpolate=False),
        Upsample2D(4, use_conv=True, kernel_size=5, padding=2),
        Upsample2D(4, use_conv=True),
    )
    assert fold_upsampling(layers) == 1
    assert isinstance(layers[-1], SubpixelUpsample)


def test_it_saves_the_arithmetic_that_it_promises():
    from torch.utils.flop_counter import FlopCounterMode

    layer = conv(8, 8, torch.float32)
    folded = SubpixelUpsample(layer)
    x = torch.randn(1, 8, 64, 64)
    counts = []
    for call in (lambda: upsampled(layer, x), lambda: folded(x)):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    plain, ours = counts
    assert ours / plain == pytest.approx(4 / 9)


@pytest.mark.slow
def test_the_published_decoder_folded_equals_diffusers_to_1e_4(make_model):
    config = {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    }  # fmt: skip
    model = make_model(**config).eval()
    latents = torch.randn(1, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model.decode(latents / 0.18215).sample
    folded = KLAutoencoder(model).fold()
    assert sum(isinstance(module, SubpixelUpsample) for module in folded.model.modules()) == 3
    assert (folded.decode(latents) - wanted).abs().max() < 1e-4
