"""Bits that do not know the batch: the native forms, and predictions and pictures made with them."""

import dataclasses

import pytest
import torch

from msf.config import RECIPES, ExperimentConfig, TaskConfig
from msf.medsymmflow import MedSymmFlow
from msf.network.inference import inference_form
from msf.network.unet import UNet
from tests.msf.tiny_unet import with_random_weights

SIZES = (1, 2, 3, 7, 16, 64)
DTYPES = (torch.float32, torch.bfloat16)
# Both published networks, and what else a configuration can ask for; on maps of 8x8 (four at the deepest level).
PUBLISHED = {name: RECIPES[name].network for name in ("published-28", "published-224")}
NETWORKS = {
    **PUBLISHED,
    "scale-shift-and-resampling-blocks": dataclasses.replace(
        PUBLISHED["published-28"],
        base_channels=32,
        channel_multipliers=(1, 2),
        n_res_blocks=1,
        use_scale_shift_norm=True,
        use_residual_updown=True,
        qkv_order="new",
    ),
    "few-channels": dataclasses.replace(
        PUBLISHED["published-28"],
        base_channels=8,
        n_groups=4,
        channel_multipliers=(1, 2),
        head_channels=8,
        n_res_blocks=1,
    ),
}


@pytest.fixture(autouse=True)
def native(need_backend):
    need_backend("prepared_convolution", "native")


def form_of(config, channels, dtype):
    network = UNet(config, channels, channels).eval()
    with_random_weights(network)
    form = inference_form(network, dtype=dtype)
    if not form.is_batch_invariant:
        pytest.skip("the native layers were measured with AVX2 and AVX-512 only, and in bfloat16 with AVX-512 BF16")
    return form


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_an_items_velocity_has_the_same_bits_in_every_batch(name, dtype):
    channels = 8 if name == "published-224" else 6
    form, side = form_of(NETWORKS[name], channels, dtype), 8
    z = torch.randn(max(SIZES), channels, side, side)
    with torch.inference_mode():
        alone = torch.cat([form(z[i : i + 1], 0.7) for i in range(3)])
        for size in SIZES:
            assert torch.equal(form(z[:size], 0.7)[:3], alone[:size]), size
        part = form(z[:3], 0.7, channels=slice(0, 3))
        assert torch.equal(form(z[:1], 0.7, channels=slice(0, 3)), part[:1])
    assert form.convolution == "native"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PUBLISHED)
def test_an_items_velocity_has_the_same_bits_in_every_batch_at_full_size(name, dtype):
    channels = 8 if name == "published-224" else 6
    form = form_of(NETWORKS[name], channels, dtype)
    z = torch.randn(max(SIZES), channels, 32, 32)
    with torch.inference_mode():
        whole = form(z, 1.0)
        for size in SIZES:
            assert torch.equal(form(z[:size], 1.0), whole[:size]), size


def test_other_precisions_and_backends_promise_nothing():
    network = UNet(NETWORKS["few-channels"], 6, 6).eval()
    others = (
        {"dtype": torch.float16},
        {"dtype": torch.float64},
        {"backend": "reference"},
        {"rewrites": ("folded_time",)},
    )
    for options in others:
        assert not inference_form(network, **options).is_batch_invariant


@pytest.fixture(scope="module", params=["rgb", "grey", "simplex"])
def flow(request):
    experiment = ExperimentConfig(
        data=dataclasses.replace(RECIPES["published-28"].data, image_size=8),
        code=dataclasses.replace(RECIPES["published-28"].code, name=request.param),
        network=NETWORKS["few-channels"],
    )
    flow = MedSymmFlow(TaskConfig(n_classes=3, image_channels=1), experiment)
    with_random_weights(flow.network)
    flow.network.eval()
    return flow


def same(one, other):
    return all(
        torch.equal(value, getattr(other, name)) for name, value in vars(one).items() if isinstance(value, torch.Tensor)
    )


@pytest.fixture(params=["fp32", "bf16"])
def precision(request, flow):
    if not flow.velocity(request.param).is_batch_invariant:
        pytest.skip("the native layers were measured with AVX2 and AVX-512 only, and in bfloat16 with AVX-512 BF16")
    return request.param


@pytest.mark.parametrize("steps", [{"n_steps": 1}, {"n_steps": 2, "method": "heun"}], ids=["one", "two"])
def test_a_prediction_is_a_function_of_picture_seed_and_draws(flow, precision, steps):
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    whole = flow.classify(images, precision=precision, n_samples=4, keep_samples=True, **steps)
    assert whole.micro_batch == 16
    for micro_batch in (1, 2, 7, 64):
        other = flow.classify(
            images, precision=precision, n_samples=4, keep_samples=True, micro_batch=micro_batch, **steps
        )
        assert same(whole, other), micro_batch
    alone = flow.classify(images[2:], precision=precision, n_samples=4, keep_samples=True, **steps)
    assert alone.micro_batch == 16
    assert torch.equal(alone.sample_distance[0], whole.sample_distance[2])
    assert torch.equal(alone.probability[0], whole.probability[2])


def test_a_picture_is_a_function_of_label_number_and_seed(flow, precision):
    labels = [0, 1, 2]
    whole = flow.generate(labels, precision=precision, n_steps=2)
    for micro_batch in (1, 2, 3, 64):
        assert torch.equal(flow.generate(labels, precision=precision, n_steps=2, micro_batch=micro_batch), whole)
    assert torch.equal(flow.generate(labels[:2], precision=precision, n_steps=2), whole[:2])
