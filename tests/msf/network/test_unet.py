import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from msf.config import UNetConfig
from msf.network.layers import AttentionBlock, ResBlock
from msf.network.unet import UNet, sinusoid
from tests.msf.tiny_unet import TINY, VARIANTS, state, tiny, with_random_weights


@pytest.fixture(autouse=True)
def _without_gradients(request):
    if "gradient" in request.node.name:
        yield
    else:
        with torch.no_grad():
            yield


@pytest.mark.parametrize(("base_channels", "channels", "expected"), [(64, 6, 8_955_526), (128, 8, 35_757_832)])
def test_published_networks_have_the_published_parameter_counts(base_channels, channels, expected):
    with torch.device("meta"):
        network = UNet(UNetConfig(base_channels=base_channels), channels, channels)
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
    assert len(network.state_dict()) == 304


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_option_gives_finite_velocities_of_the_right_shape(changes):
    network = tiny(**changes)
    z = torch.randn(2, 4, 8, 16)
    v = network(z, 0.3)
    assert v.shape == z.shape
    assert v.isfinite().all()
    assert v.std() > 1e-3


def test_input_and_output_widths_may_differ():
    assert UNet(TINY, 5, 2)(state(channels=5), 0.5).shape == (3, 2, 8, 8)


def test_a_fresh_network_returns_zero():
    network = UNet(TINY, 4, 4)
    assert not network(state(), 0.5).any()
    for module in network.modules():
        if isinstance(module, ResBlock):
            assert not module.out_layers.conv.weight.any()
        if isinstance(module, AttentionBlock):
            assert not module.proj_out.weight.any()


def test_a_fresh_network_learns_in_every_layer_after_a_few_steps_of_gradient_descent():
    torch.manual_seed(0)
    network = UNet(TINY, 4, 4, n_times=2)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    z = state()
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = (network(z, torch.tensor([[0.2, 0.7]])) - z).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("changes", [{}, VARIANTS["all of it"]], ids=["plain", "all of it"])
def test_gradient_equals_finite_differences(changes):
    network = tiny(channels=2, **changes).double()
    z = state(1, 2, 4).double().requires_grad_()
    t = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, (z, t), fast_mode=True)


def test_initial_weights_follow_the_seed():
    networks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        networks.append(UNet(TINY, 4, 4).state_dict())
    assert all(torch.equal(networks[0][name], networks[1][name]) for name in networks[0])
    assert any(not torch.equal(networks[0][name], networks[2][name]) for name in networks[0])


# Time


def test_sinusoid_has_cosines_first_and_the_documented_frequencies():
    t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
    rows = sinusoid(t, 6)
    for i, frequency in enumerate((1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3))):
        for row, value in zip(rows, t.tolist(), strict=True):
            assert row[i].item() == pytest.approx(math.cos(value * frequency), abs=1e-15)
            assert row[3 + i].item() == pytest.approx(math.sin(value * frequency), abs=1e-15)


def test_all_forms_of_one_time_agree():
    network, z = tiny(), state()
    expected = network(z, torch.full((3,), 0.25))
    for t in (0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.tensor(0.25, dtype=torch.float64)):
        torch.testing.assert_close(network(z, t), expected, atol=1e-5, rtol=0)
    assert torch.equal(network(z, 1), network(z, 1.0))


def test_all_forms_of_two_times_agree():
    network, z = tiny(n_times=2), state()
    expected = network(z, torch.full((3, 2), 0.25))
    for t in (0.25, torch.tensor(0.25), torch.full((3,), 0.25), torch.tensor([[0.25, 0.25]])):
        torch.testing.assert_close(network(z, t), expected, atol=1e-5, rtol=0)
    pair = torch.tensor([[1.0, 0.25]])
    torch.testing.assert_close(network(z, pair), network(z, pair.repeat(3, 1)), atol=1e-5, rtol=0)


def test_two_times_are_two_streams():
    network, z = tiny(n_times=2), state()
    results = [network(z, torch.tensor([pair])) for pair in ([0.2, 0.8], [0.8, 0.2], [0.2, 0.2])]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(results, results[1:] + results[:1], strict=True))


def test_a_time_per_item_is_that_items_time():
    network, z = tiny(), state()
    t = torch.tensor([0.1, 0.5, 0.9])
    v = network(z, t)
    for i in range(3):
        torch.testing.assert_close(v[i : i + 1], network(z[i : i + 1], t[i].item()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("n_times", "t"), [(1, 0.5), (1, torch.tensor(0.5)), (2, 0.5), (2, torch.tensor([[0.5, 1.0]]))]
)
def test_a_shared_time_is_one_embedding(n_times, t):
    network = tiny(n_times=n_times)
    rows = []
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[0]))
    network(state(), t)
    assert len(rows) > 2
    assert set(rows) == {1}


def test_a_number_reads_no_tensor_on_the_host(monkeypatch):
    def refuse(*_args):
        raise AssertionError("a tensor was read on the host")

    network, z = tiny(n_times=2), state()
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    network(z, 0.5)


# Independence, formats, precision


def test_an_item_does_not_depend_on_the_others():
    network, z = tiny(), state(4)
    other = z.clone()
    other[1:] = 7.0
    torch.testing.assert_close(network(z, 0.5)[0], network(other, 0.5)[0], atol=1e-6, rtol=0)


def test_an_empty_batch_gives_an_empty_velocity():
    assert tiny()(state(0), torch.zeros(0)).shape == (0, 4, 8, 8)


def test_channels_last_stays_channels_last_and_changes_nothing():
    network, z = tiny(), state()
    expected = network(z, 0.5)
    v = network.to(memory_format=torch.channels_last)(z.contiguous(memory_format=torch.channels_last), 0.5)
    assert v.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(v, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", [{}, VARIANTS["all of it"]], ids=["plain", "all of it"])
def test_bf16_module_is_near_to_fp32(changes):
    network, z = tiny(**changes), state()
    expected = network(z, 0.5)
    v = network.bfloat16()(z, 0.5)
    assert v.dtype == torch.bfloat16
    assert (v - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("changes", [{}, VARIANTS["all of it"]], ids=["plain", "all of it"])
def test_autocast_is_near_to_fp32(changes):
    network, z = tiny(**changes), state()
    expected = network(z, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        v = network(z, 0.5)
    assert v.dtype == torch.bfloat16
    assert (v - expected).norm() < 0.03 * expected.norm()


def test_autocast_gives_fp32_gradients_near_to_those_without():
    network, z = tiny(n_times=2), state()

    def gradients(enabled):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            v = network(z, torch.tensor([[0.2, 0.7]]))
        (v.float() - z).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    exact, mixed = gradients(False), gradients(True)
    assert mixed.dtype == torch.float32
    assert (mixed - exact).norm() < 0.05 * exact.norm()


def test_times_are_not_rounded_to_the_dtype_of_the_weights():
    # bf16 has no number between 0.5 and 0.50390625: a rounded time would give both the same sinusoid.
    network = tiny().bfloat16()
    seen = []
    network.time_embed[0].register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    t = torch.tensor([0.5017, 0.5], dtype=torch.float64)
    network.embed_time(t, 2)
    torch.testing.assert_close(seen[0], sinusoid(t, 32).bfloat16(), atol=0, rtol=0)


def test_dropout_acts_in_training_only():
    network = tiny(dropout=0.5)
    z = state()
    assert torch.equal(network(z, 0.5), network(z, 0.5))
    network.train()
    assert not torch.equal(network(z, 0.5), network(z, 0.5))


def test_the_network_compiles_into_one_graph():
    network, z = tiny(n_times=2, **VARIANTS["all of it"]), state()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for t in (0.5, torch.rand(3, 2)):
        torch.testing.assert_close(compiled(z, t), network(z, t), atol=1e-6, rtol=0)


# The layers against plain formulas


def test_attention_block_equals_the_formula():
    for order in ("legacy", "new"):
        config = dataclasses.replace(TINY, qkv_order=order)
        torch.manual_seed(0)
        block = with_random_weights(AttentionBlock(64, config)).double()
        x = torch.randn(2, 64, 4, 4, dtype=torch.float64)
        h = F.group_norm(x, 32, block.norm.weight, block.norm.bias).flatten(2)  # [N, C, T]
        packed = block.qkv(h)
        if order == "legacy":
            q, k, v = packed.reshape(2, 2, 3, 32, 16).unbind(2)  # [N, heads, d, T]
        else:
            q, k, v = packed.reshape(2, 3, 2, 32, 16).unbind(1)
        weights = torch.softmax(torch.einsum("nhdt,nhds->nhts", q, k) / math.sqrt(32), dim=-1)
        mixed = torch.einsum("nhts,nhds->nhdt", weights, v).reshape(2, 64, 16)
        expected = x + block.proj_out(mixed).reshape(x.shape)
        torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("use_scale_shift_norm", [False, True])
def test_residual_block_equals_the_formula(resample, use_scale_shift_norm):
    torch.manual_seed(0)
    block = ResBlock(32, 64, 16, 32, dropout=0.0, use_scale_shift_norm=use_scale_shift_norm, resample=resample)
    block = with_random_weights(block).double()
    x, embedding = torch.randn(2, 32, 4, 4).double(), torch.randn(2, 16).double()

    def resized(h):
        if resample == "down":
            return h.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-2, -1))
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample == "up" else h

    norm_in, _, conv_in = block.in_layers
    norm_out, _, _, conv_out = block.out_layers
    h = conv_in(resized(F.silu(norm_in(x))))
    projected = block.emb_layers(embedding)[:, :, None, None]
    if use_scale_shift_norm:
        scale, shift = projected[:, :64], projected[:, 64:]
        h = norm_out(h) * (1 + scale) + shift
    else:
        h = norm_out(h + projected)
    expected = block.skip_connection(resized(x)) + conv_out(F.silu(h))
    torch.testing.assert_close(block(x, embedding), expected, atol=1e-12, rtol=0)


# Bad input


@pytest.mark.parametrize("shape", [(3, 5, 8, 8), (4, 8, 8), (3, 4, 7, 8), (3, 4, 8, 9)])
def test_a_state_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"^z must .*; got \["):
        tiny()(torch.zeros(shape), 0.5)


@pytest.mark.parametrize("z", [None, [[0.0]], torch.zeros(3, 4, 8, 8, dtype=torch.uint8)])
def test_a_state_that_is_no_floating_tensor_is_refused(z):
    with pytest.raises(TypeError, match="^z must be a floating tensor; got"):
        tiny()(z, 0.5)


@pytest.mark.parametrize(
    ("n_times", "shape"),
    [(1, (2,)), (1, (3, 1)), (1, (3, 2)), (1, (1, 2)), (2, (2,)), (2, (3, 1)), (2, (2, 2)), (2, (3, 3))],
)
def test_a_time_of_another_shape_is_refused(n_times, shape):
    with pytest.raises(ValueError, match=r"^t must .* N = 3; got \["):
        tiny(n_times=n_times)(state(), torch.zeros(shape))


@pytest.mark.parametrize("t", ["0.5", None, True, torch.tensor(1), torch.zeros(3, dtype=torch.int64)])
def test_a_time_that_is_no_real_number_is_refused(t):
    with pytest.raises(TypeError, match=r"^t must be a number or a floating tensor; got"):
        tiny()(state(), t)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0, "out_channels": 4}, "in_channels must be >= 1; got 0"),
        ({"in_channels": 4, "out_channels": 0}, "out_channels must be >= 1; got 0"),
        ({"in_channels": 4, "out_channels": 4, "n_times": 3}, "n_times must be 1 or 2; got 3"),
    ],
)
def test_impossible_widths_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(TINY, **arguments)


@pytest.mark.parametrize("heads", [{"head_channels": 48}, {"head_channels": None, "n_heads": 5}])
def test_heads_that_do_not_divide_the_channels_are_refused(heads):
    (name, count) = next((name, count) for name, count in heads.items() if count)
    with pytest.raises(ValueError, match=f"^{name} must divide the 64 channels under attention; got {count}"):
        UNet(dataclasses.replace(TINY, **heads), 4, 4)
