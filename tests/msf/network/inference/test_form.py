import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msf.config import UNetConfig
from msf.network import inference
from msf.network.inference import ALL_REWRITES, Rewrite, inference_form
from msf.network.inference.layers import Plan
from msf.network.unet import UNet
from msf_kernels.prepared.api import _operator
from msf_kernels.testing import assert_within_budget
from tests.msf.tiny_unet import VARIANTS, state, tiny, with_random_weights


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_it_computes_the_network_s_function_in_float32(changes):
    network, z = tiny(**changes), state()
    velocity = inference_form(network, (1.0, 0.25))
    for t in (1.0, 0.25, 0.6):
        assert relative_error(velocity(z, t), network(z, t)) < 1e-5


@pytest.mark.parametrize("changes", [VARIANTS["plain"], VARIANTS["all of it"]], ids=["plain", "all of it"])
def test_it_computes_the_network_s_function_in_float64(changes):
    network, z = tiny(**changes).double(), state().double()
    assert relative_error(inference_form(network)(z, 0.3), network(z, 0.3)) < 1e-12


@pytest.mark.parametrize("left_out", Rewrite)
@pytest.mark.parametrize("changes", [VARIANTS["plain"], VARIANTS["all of it"]], ids=["plain", "all of it"])
def test_every_rewrite_can_be_left_out(changes, left_out):
    network, z = tiny(**changes), state()
    velocity = inference_form(network, (0.5,), rewrites=ALL_REWRITES - {left_out})
    assert left_out not in velocity.rewrites
    assert relative_error(velocity(z, 0.5), network(z, 0.5)) < 1e-5


@pytest.mark.parametrize("only", Rewrite)
def test_every_rewrite_works_alone(only):
    network, z = tiny(use_residual_updown=True), state()
    velocity = inference_form(network, rewrites=[only.value])
    assert relative_error(velocity(z, 0.5, channels=slice(2, 4)), network(z, 0.5)[:, 2:4]) < 1e-5


def test_no_rewrite_at_all_is_the_network():
    network, z = tiny().double(), state().double()
    assert relative_error(inference_form(network, rewrites=())(z, 0.5), network(z, 0.5)) < 1e-14


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("rewrites", [ALL_REWRITES, ALL_REWRITES - {Rewrite.FOLDED_TIME}], ids=["all", "time unfolded"])
def test_bfloat16_is_within_the_error_budget(changes, rewrites):
    network, z = tiny(**changes), state(n=64)  # enough for the largest errors to be comparable
    bf16 = tiny(**changes).bfloat16()
    z = z.bfloat16()
    # The oracle has the weights that both bfloat16 networks have.
    oracle = tiny(**changes)
    oracle.load_state_dict({name: value.float() for name, value in bf16.state_dict().items()})
    velocity = inference_form(bf16, dtype=torch.bfloat16, rewrites=rewrites)
    assert_within_budget(velocity(z, 0.5), oracle.double()(z.double(), 0.5), bf16(z, 0.5))
    assert velocity(z, 0.5).dtype == torch.bfloat16
    assert network.out.conv.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(("base_channels", "channels"), [(64, 6), (128, 8)], ids=["pixel", "latent"])
def test_it_computes_the_published_networks(base_channels, channels):
    torch.manual_seed(0)
    network = with_random_weights(UNet(UNetConfig(base_channels=base_channels), channels, channels))
    z = state(n=2, channels=channels, size=32)
    expected = network(z, 1.0)
    assert relative_error(inference_form(network)(z, 1.0), expected) < 1e-5
    bf16 = with_random_weights(UNet(UNetConfig(base_channels=base_channels), channels, channels))
    bf16.load_state_dict(network.state_dict())
    bf16 = bf16.bfloat16()
    ours = inference_form(network, dtype=torch.bfloat16)(z, 1.0)
    assert_within_budget(ours, expected.double(), bf16(z, 1.0))


def test_it_computes_the_authors_networks(golden):
    tensors = golden.tensors
    z, times, expected = tensors["velocity_in"], tensors["velocity_t"], tensors["velocity_out"]
    network = UNet(golden.network_config, z.shape[1], z.shape[1])
    network.load_state_dict(golden.network_tensors)
    for left_out in [None, *Rewrite]:
        velocity = inference_form(network.eval(), rewrites=ALL_REWRITES - {left_out})
        for row in range(len(z)):
            actual = velocity(z[row : row + 1], float(times[row]))
            assert relative_error(actual, expected[row : row + 1]) < 1e-5


def test_it_computes_the_authors_networks_in_bfloat16_within_the_error_budget(golden):
    z = golden.tensors["velocity_in"].bfloat16()
    network = UNet(golden.network_config, z.shape[1], z.shape[1]).bfloat16().eval()
    network.load_state_dict(golden.network_tensors)
    oracle = UNet(golden.network_config, z.shape[1], z.shape[1]).double().eval()
    oracle.load_state_dict(network.state_dict())
    assert_within_budget(inference_form(network)(z, 0.5), oracle(z.double(), 0.5), network(z, 0.5))


@pytest.mark.parametrize(
    "t",
    [
        0.5,
        np.float32(0.5),
        (0.5, 0.5),
        (torch.tensor([0.5]), 0.5),
        torch.tensor(0.5),
        torch.tensor([0.5]),
        torch.tensor([[0.5, 0.5]]),
    ],
)
def test_a_network_with_two_times_takes_one_or_two(t):
    network, z = tiny(n_times=2), state()
    assert relative_error(inference_form(network)(z, t), network(z, 0.5)) < 1e-5


def test_the_two_times_of_a_pair_are_the_image_s_and_the_semantic_map_s():
    network, z = tiny(n_times=2), state()
    expected = network(z, torch.tensor([[1.0, 0.25]]))
    assert relative_error(inference_form(network)(z, (1.0, 0.25)), expected) < 1e-5
    assert relative_error(inference_form(network)(z, (0.25, 1.0)), expected) > 1e-3


def test_a_time_that_was_not_announced_is_folded_once():
    velocity = inference_form(tiny(), (1.0,))
    assert velocity.times == ((1.0,),)
    velocity(state(), 0.5)
    velocity(state(), 0.5)
    assert velocity.times == ((1.0,), (0.5,))


def test_the_number_of_kept_times_is_bounded(monkeypatch):
    monkeypatch.setattr("msf.network.inference.form.MAX_FOLDED_TIMES", 2)
    velocity = inference_form(tiny(), (0.1, 0.2, 0.3))
    assert velocity.times == ((0.2,), (0.3,))


def test_only_the_wanted_channels_are_computed():
    network, z = tiny(), state()
    velocity = inference_form(network, (1.0,))
    with FlopCounterMode(display=False) as all_flops:
        everything = velocity(z, 1.0)
    with FlopCounterMode(display=False) as some_flops:
        semantic = velocity(z, 1.0, channels=slice(1, 4))
    assert semantic.shape == (3, 3, 8, 8)
    assert relative_error(semantic, everything[:, 1:4]) < 1e-5
    assert all_flops.get_total_flops() - some_flops.get_total_flops() == 2 * 3 * 8 * 8 * 32 * 9


def test_no_time_embedding_is_computed_in_the_loop():
    velocity = inference_form(tiny(), (1.0,))
    with FlopCounterMode(display=False) as counter:
        velocity(state(), 1.0)
    linear = {torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.linear}
    assert not linear & set(counter.get_flop_counts()["Global"])


def test_the_published_latent_network_needs_seven_percent_fewer_operations():
    network = UNet(UNetConfig(base_channels=128), 8, 8).eval()
    z = state(n=1, channels=8, size=32)
    velocity = inference_form(network, (1.0,))
    with FlopCounterMode(display=False) as plain:
        network(z, 1.0)
    with FlopCounterMode(display=False) as ours:
        velocity(z, 1.0)
    assert _flops_beside_attention(ours) < 0.93 * _flops_beside_attention(plain)


def _flops_beside_attention(counter):
    """Leave out what PyTorch counts of some kernels of the attention and not of others; its arithmetic is the same."""
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for kernel, flops in counts.items() if "attention" not in str(kernel) and "bmm" not in str(kernel))


def test_packed_convolutions_are_counted_like_plain_ones():
    network, z = tiny(), state()
    counts = []
    for rewrites in (ALL_REWRITES, ALL_REWRITES - {Rewrite.PACKED_WEIGHTS}):
        velocity = inference_form(network, (1.0,), rewrites=rewrites)
        with FlopCounterMode(display=False) as counter:
            velocity(z, 1.0)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Build forms as for a GPU, where a convolution takes along what is around it."""
    device = torch.device("cuda")
    monkeypatch.setattr(
        "msf.network.inference.form.Plan", lambda dtype, rewrites, _, backend: Plan(dtype, rewrites, device, backend)
    )


@pytest.mark.interpreter
@pytest.mark.parametrize("changes", [VARIANTS["plain"], VARIANTS["all of it"]], ids=["plain", "all of it"])
def test_the_kernels_of_a_gpu_compute_the_network_s_function(changes, as_on_a_gpu):
    network, z = tiny(**changes), state(n=2)
    velocity = inference_form(network, (1.0,), backend="triton")
    assert relative_error(velocity(z, 1.0), network(z, 1.0)) < 1e-5
    assert velocity._residual_blocks[0].conv_in.backend == "triton"


@pytest.mark.parametrize("backend", ["aten", "reference"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_the_convolutions_of_a_gpu_compute_the_network_s_function(changes, backend, as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(_operator, "_auto_order", lambda *_: (backend,))
    network, z = tiny(**changes), state()
    for rewrites in (
        ALL_REWRITES,
        ALL_REWRITES - {Rewrite.SUBPIXEL_UPSAMPLING},
        ALL_REWRITES - {Rewrite.FUSED_RESIDUAL},
    ):
        velocity = inference_form(network, (1.0,), rewrites=rewrites)
        assert velocity._plan.is_whole == (Rewrite.FUSED_RESIDUAL in rewrites)
        with FlopCounterMode(display=False) as counter:
            actual = velocity(z, 1.0)
        assert relative_error(actual, network(z, 1.0)) < 1e-5
        assert torch.ops.mkldnn._convolution_pointwise not in counter.get_flop_counts()["Global"]


def test_a_named_backend_serves_the_operators_inside():
    network, z = tiny(), state()
    expected = network(z, 1.0)
    with pytest.raises(ValueError, match="backend must be one of .*; got 'cudnn'"):
        inference_form(network, backend="cudnn")
    assert relative_error(inference_form(network, backend="reference")(z, 1.0), expected) < 1e-5


def test_the_bits_of_an_item_do_not_depend_on_the_others_in_the_batch():
    velocity = inference_form(tiny(), (1.0,), dtype=torch.bfloat16)
    z = state(n=4)
    assert torch.equal(velocity(z, 1.0).flip(0), velocity(z.flip(0), 1.0))


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (torch.tensor([0.1, 0.2, 0.3]), r"one time for the whole batch; got a tensor \[3\]"),
        ((torch.tensor([0.1, 0.2, 0.3]), 0.5), r"one time for the whole batch; got a tensor \[3\]"),
        (math.nan, "finite number; got nan"),
        ((0.1, 0.2), "finite number; got"),
    ],
)
def test_times_that_are_not_shared_or_not_finite_are_refused(t, message):
    with pytest.raises(ValueError, match=message):
        inference_form(tiny())(state(), t)


def test_what_has_no_inference_form_is_refused():
    with pytest.raises(TypeError, match=r"network must be a msf\.network\.unet\.UNet; got Linear"):
        inference_form(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"dtype must be one of .*; got torch\.int8"):
        inference_form(tiny(), dtype=torch.int8)
    with pytest.raises(ValueError, match="rewrites must be among folded_time, .*; got magic"):
        inference_form(tiny(), rewrites=["magic"])
    velocity = inference_form(tiny())
    with pytest.raises(ValueError, match=r"z must be \[N, 4, H, W\]"):
        velocity(state(channels=3), 1.0)
    with pytest.raises(TypeError, match="t must be a number, a pair of numbers or a tensor; got 'now'"):
        velocity(state(), "now")


def test_a_form_does_not_follow_later_changes():
    network, z = tiny(), state()
    form = inference_form(network)
    expected = network(z, 0.5)
    for parameter in network.parameters():  # before the first map, for which the weights are laid out
        parameter.data.mul_(-3)
    assert relative_error(form(z, 0.5), expected) < 1e-5
    assert relative_error(form(z, 0.5, channels=slice(1, 2)), expected[:, 1:2]) < 1e-5


@pytest.mark.parametrize("old", ["CompiledVelocity", "LatestVelocity", "compile_velocity"])
def test_old_names_serve_with_a_warning(old):
    with pytest.warns(DeprecationWarning, match=f"{old} is now "):
        renamed = getattr(inference, old)
    assert renamed.__name__ in inference.__all__


def test_other_names_are_unknown():
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        inference.no_such_name  # noqa: B018
