"""Whatever is done to a network, predictions are the network's own: the form follows, or is not used."""

import dataclasses
import logging
from contextlib import ExitStack

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

from msf.network import layers as network_layers
from msf.network.inference import InferenceForm, KeptForm, inference_form, reason_against, structure
from msf.network.layers import AttentionBlock, ResBlock
from msf.network.unet import UNet
from msf.network.velocity import PlainVelocity
from tests.msf.tiny_unet import state, tiny, with_random_weights


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield
    structure._expected.cache_clear()  # some tests change what a configuration builds


def block(network):
    return network.input_blocks[1][0]


def conv(network):
    return block(network).in_layers.conv


def attention(network):
    return network.middle_block[1]


def replace_conv(network, **options):
    old = conv(network)
    new = nn.Conv2d(old.in_channels, old.out_channels, 3, **({"padding": 1} | options))
    if new.weight.shape == old.weight.shape:
        new.weight.data.copy_(old.weight)
    block(network).in_layers[-1] = new


# ---- numbers: the form follows


def flip_two_signs(network):
    flat = conv(network).weight.data.view(-1)
    flat[[3, 40]] *= -1


def flip_two_signs_by_numpy(network):
    flat = network.out.conv.weight.detach().numpy().reshape(-1)
    flat[[1, 5]] *= -1


def swap_two_channels(network):
    weight = conv(network).weight.data
    weight[[0, 1]] = weight[[1, 0]].clone()


def reverse(network):
    weight = conv(network).weight.data
    weight.copy_(weight.flip(1))


def permute_pixels(network):
    weight = conv(network).weight.data
    weight.copy_(weight.transpose(2, 3).clone())


def reorder_registration(network):
    norm = network.out.norm
    weight = norm.weight
    del norm.weight
    norm.register_parameter("weight", weight)
    norm.bias.data.add_(3.0)


def tie(network):
    inside = block(network)
    inside.out_layers.norm.weight = inside.in_layers.norm.weight = nn.Parameter(torch.full((32,), 0.3))


def train_a_step(network):
    with torch.enable_grad():
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
        network(state(), 0.5).square().sum().backward()
        optimizer.step()


def edit_in_inference_mode(network):
    with torch.inference_mode():
        network.time_embed[0].weight.mul_(-1)


def write_storage(network):
    network.out.conv.bias.untyped_storage()[2] = 7
    network.out.conv.bias.untyped_storage()[3] = 66


def swap_tensors(network):
    torch.utils.swap_tensors(network.out.conv.bias, nn.Parameter(torch.ones(4)))


NUMBERS = {
    "counted in place": lambda n: n.out.conv.bias.add_(1.0),
    "through data": lambda n: n.out.conv.weight.data.mul_(0.5),
    "all signs": lambda n: conv(n).weight.data.neg_(),
    "two signs": flip_two_signs,
    "two signs by numpy": flip_two_signs_by_numpy,
    "channels swapped": swap_two_channels,
    "channels reversed": reverse,
    "taps permuted": permute_pixels,
    "rolled": lambda n: conv(n).weight.data.copy_(conv(n).weight.data.roll(1, 0)),
    "bias by numpy": lambda n: n.out.conv.bias.detach().numpy().__setitem__(0, 2.0),
    "storage": write_storage,
    "another parameter": lambda n: setattr(n.out.conv, "bias", nn.Parameter(torch.ones(4))),
    "another data": lambda n: setattr(n.out.conv.bias, "data", torch.ones(4)),
    "swapped tensors": swap_tensors,
    "set": lambda n: n.out.conv.bias.data.set_(torch.ones(4)),
    "loaded": lambda n: n.load_state_dict(with_random_weights(tiny(), 5).double().float().state_dict()),
    "loaded and assigned": lambda n: n.load_state_dict(
        {name: value + 0.01 for name, value in n.state_dict().items()}, assign=True
    ),
    "trained": train_a_step,
    "in inference mode": edit_in_inference_mode,
    "time embedding": lambda n: n.time_embed[2].bias.data.add_(0.5),
    "time projection": lambda n: block(n).emb_layers[1].weight.data.neg_(),
    "norm": lambda n: attention(n).norm.weight.data.mul_(2.0),
    "norm re-registered": reorder_registration,
    "attention": lambda n: attention(n).proj_out.weight.data.neg_(),
    "shortcut": lambda n: n.output_blocks[0][0].skip_connection.weight.data.neg_(),
    "tied": tie,
    "pruned for good": lambda n: prune.remove(prune.random_unstructured(conv(n), "weight", 0.5), "weight"),
    "memory format": lambda n: n.to(memory_format=torch.channels_last),
    "frozen": lambda n: n.requires_grad_(False),
    "one value, by a little": lambda n: n.out.conv.bias.data[0].add_(1e-3),
}

# ---- anything else: the network itself serves


class LowRank(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 0.5 * x.mean()


class Shifted(UNet):
    def forward(self, z, t):
        return super().forward(z, t) + 1


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def low_rank(network):
    conv(network).__class__ = LowRank


def shifted(network):
    network.__class__ = Shifted


def patch_forward(network):
    original = block(network).forward
    block(network).forward = lambda x, embedding: 2 * original(x, embedding)


def patch_call(network):
    original = conv(network)._call_impl
    conv(network)._call_impl = lambda x: original(x) + 1


def patch_helper(network):
    original = block(network).out_layers.activate
    block(network).out_layers.activate = lambda h, **options: original(h, **options) + 1


def masked(network):
    layer = conv(network)
    layer.register_buffer("mask", torch.rand_like(layer.weight))
    layer.register_forward_pre_hook(lambda module, args: module.weight.data.mul_(module.mask))


def hooked_by_accelerate(network):
    hooks = pytest.importorskip("accelerate.hooks")

    class Hook(hooks.ModelHook):
        def post_forward(self, module, output):
            return output + 1

    hooks.add_hook_to_module(conv(network), Hook())


def append_layer(network):
    network.input_blocks[1].append(nn.Conv2d(32, 32, 1))


def reorder_layers(network):
    layers = network.time_embed._modules
    layers["1"] = layers.pop("1")


def parameter_of_a_subclass(network):
    class Special(nn.Parameter):
        pass

    conv(network).weight = Special(conv(network).weight.data * 2)


def other_shortcut(network):
    network.output_blocks[0][0].skip_connection = nn.ConvTranspose2d(128, 64, 1)


def set_setting(layer_of, name, value):
    return lambda network: setattr(layer_of(network), name, value)


STRUCTURE = {
    "forward hook": lambda n: conv(n).register_forward_hook(lambda m, x, y: y + 1),
    "forward hook of the network": lambda n: n.register_forward_hook(lambda m, x, y: y + 1),
    "forward hook with keywords": lambda n: conv(n).register_forward_hook(lambda m, x, k, y: -y, with_kwargs=True),
    "pre-hook": lambda n: conv(n).register_forward_pre_hook(lambda m, x: (2 * x[0],)),
    "backward hook": lambda n: conv(n).register_full_backward_hook(lambda m, x, y: None),
    "patched forward": patch_forward,
    "patched call": patch_call,
    "patched helper": patch_helper,
    "patched convolution": set_setting(conv, "_conv_forward", lambda x, w, b: x),
    "layer of a subclass": low_rank,
    "network of a subclass": shifted,
    "parametrised": lambda n: parametrize.register_parametrization(conv(n), "weight", Doubled()),
    "parametrised norm": lambda n: parametrize.register_parametrization(n.out.norm, "weight", Doubled()),
    "weight norm": lambda n: parametrizations.weight_norm(conv(n)),
    "spectral norm": lambda n: parametrizations.spectral_norm(conv(n)).eval(),
    "old spectral norm": lambda n: nn.utils.spectral_norm(conv(n)).eval(),
    "pruned": lambda n: prune.random_unstructured(conv(n), "weight", 0.5),
    "pruned norm": lambda n: prune.random_unstructured(n.out.norm, "weight", 0.5),
    "mask": masked,
    "buffer": lambda n: conv(n).register_buffer("mask", torch.ones(1)),
    "accelerate": hooked_by_accelerate,
    "circular": lambda n: replace_conv(n, padding_mode="circular"),
    "circular by attribute": set_setting(conv, "padding_mode", "reflect"),
    "dilated": lambda n: replace_conv(n, dilation=2, padding=2),
    "groups": lambda n: replace_conv(n, groups=4),
    "same": lambda n: replace_conv(n, padding="same"),
    "dilation by attribute": lambda n: (setattr(conv(n), "dilation", (2, 2)), setattr(conv(n), "padding", (2, 2))),
    "no bias": lambda n: replace_conv(n, bias=False),
    "bias taken away": set_setting(conv, "bias", None),
    "eps": set_setting(lambda n: n.out.norm, "eps", 0.5),
    "groups of a norm": set_setting(lambda n: n.out.norm, "num_groups", 4),
    "heads": set_setting(attention, "n_heads", 1),
    "order": set_setting(attention, "order", "new"),
    "attribute": set_setting(conv, "scale", 2.0),
    "activation of the time": lambda n: n.time_embed.__setitem__(1, nn.GELU()),
    "activation of a projection": lambda n: block(n).emb_layers.__setitem__(0, nn.Tanh()),
    "one more layer": append_layer,
    "one more projection": lambda n: block(n).emb_layers.append(nn.Tanh()),
    "one layer less": lambda n: n.output_blocks[0].__delitem__(1),
    "layers reordered": reorder_layers,
    "shortcut by another layer": other_shortcut,
    "layer taken away": lambda n: block(n)._modules.update(skip_connection=None),
    "no shortcut": set_setting(block, "skip_connection", nn.Hardtanh()),
    "norm of another kind": lambda n: setattr(n.out, "0", nn.GroupNorm(1, 32)),
    "configuration": lambda n: setattr(n, "config", dataclasses.replace(n.config, n_groups=16)),
    "subclass of a parameter": parameter_of_a_subclass,
    "dtypes mixed": lambda n: block(n).in_layers.norm.double(),
}  # fmt: skip


def outcome(velocity, z):
    try:
        return velocity(z, 0.3)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        return type(error)


def assert_same_outcome(actual, expected):
    if isinstance(expected, type):
        assert actual == expected
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("edit", NUMBERS.values(), ids=NUMBERS)
def test_other_numbers_are_seen(edit):
    network, kept, z = tiny(), KeptForm(), state()
    before = kept.of(network)
    assert kept.of(network) is before
    first = before(z, 0.3)
    edit(network)
    form = kept.of(network)
    assert isinstance(form, InferenceForm)
    expected = network(z, 0.3)
    torch.testing.assert_close(form(z, 0.3), expected, rtol=1e-4, atol=1e-5)
    if form is before:  # nothing that counts was changed
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(before(z, 0.3), first, rtol=0, atol=0)  # a form is a copy


@pytest.mark.parametrize("edit", STRUCTURE.values(), ids=STRUCTURE)
def test_what_the_form_does_not_compute_is_left_to_the_network(edit, caplog):
    network, kept, z = tiny(), KeptForm(), state()
    kept.of(network)(z, 0.3)
    edit(network)
    with caplog.at_level(logging.WARNING):
        velocities = [kept.of(network) for _ in range(2)]
    assert all(isinstance(velocity, PlainVelocity) for velocity in velocities)
    (record,) = caplog.records
    assert reason_against(network) in record.getMessage()
    assert_same_outcome(outcome(velocities[0], z), outcome(network, z))
    with pytest.raises(ValueError, match="network must be as its configuration builds it"):
        inference_form(network)


GLOBAL = {
    "forward hook": lambda: nn.modules.module.register_module_forward_hook(lambda m, x, y: 2 * y),
    "pre-hook": lambda: nn.modules.module.register_module_forward_pre_hook(lambda m, x: None),
}
PATCHES = {
    "block": (ResBlock, "forward", lambda self, x, embedding: x),
    "attention": (AttentionBlock, "forward", lambda self, x: 2 * x),
    "convolution": (nn.Conv2d, "_conv_forward", lambda self, x, w, b: torch.conv2d(x, w, b, self.stride, 1) + 1),
    "call": (nn.Module, "_call_impl", lambda self, *args, **kwargs: 2 * self.forward(*args, **kwargs)),
    "norm": (network_layers, "group_norm_silu", lambda h, *args, **kwargs: h),
    "weight hidden by the class": (nn.Conv2d, "weight", property(lambda self: 2 * self._parameters["weight"])),
    "bias hidden by the class": (nn.Linear, "bias", property(lambda self: -self._parameters["bias"])),
    "setting hidden by the class": (nn.GroupNorm, "eps", property(lambda self: 0.5, lambda self, value: None)),
    "layer hidden by the class": (ResBlock, "skip_connection", staticmethod(lambda x: 0.0)),
    "PyTorch's activation": (F, "silu", lambda x, inplace=False: x),
    "PyTorch's product": (F, "linear", lambda x, weight, bias=None: x.new_ones(*x.shape[:-1], len(weight))),
    "PyTorch's resizing": (F, "interpolate", lambda x, **options: x.repeat(1, 1, 2, 2)),
    "network": (UNet, "embed_time", lambda self, t, n: torch.ones(1, 128)),
}


@pytest.mark.parametrize("register", GLOBAL.values(), ids=GLOBAL)
def test_hooks_on_all_modules_are_seen(register):
    network, kept, z = tiny(), KeptForm(), state()
    kept.of(network)(z, 0.3)
    with ExitStack() as stack:
        stack.callback(register().remove)
        torch.testing.assert_close(kept.of(network)(z, 0.3), network(z, 0.3), rtol=1e-4, atol=1e-5)
        assert "a hook on all modules" in reason_against(network)
    assert reason_against(network) is None


@pytest.mark.parametrize(("owner", "name", "function"), PATCHES.values(), ids=PATCHES)
def test_patched_classes_are_seen(owner, name, function, monkeypatch):
    network, kept, z = tiny(), KeptForm(), state()
    kept.of(network)(z, 0.3)
    monkeypatch.setattr(owner, name, function, raising=False)
    assert "was patched" in reason_against(network)
    assert_same_outcome(outcome(kept.of(network), z), outcome(network, z))


def test_autocast_is_the_network_s_own():
    network, kept, z = tiny(), KeptForm(), state()
    form = kept.of(network)
    expected = form(z, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kept.of(network)(z, 0.3), network(z, 0.3))
        assert torch.equal(inference_form(network, (0.3,))(z, 0.3), expected)
    assert isinstance(kept.of(network), InferenceForm)


def test_the_flop_counter_s_hooks_only_watch():
    network = tiny()
    with FlopCounterMode(display=False):
        assert reason_against(network) is None


def test_what_is_added_and_never_called_changes_nothing(monkeypatch):
    monkeypatch.setattr(nn.Module, "of_a_package", lambda self: None, raising=False)
    network, z = tiny(), state()
    expected = network(z, 0.3)
    torch.compile(network, backend="eager")(z, 0.3)  # leaves functions of its own in the modules that it traced
    torch._dynamo.reset()
    assert reason_against(network) is None
    torch.testing.assert_close(KeptForm().of(network)(z, 0.3), expected, rtol=1e-4, atol=1e-5)


def test_a_network_as_it_was_gets_its_form_back():
    network, kept = tiny(), KeptForm()
    hook = conv(network).register_forward_hook(lambda m, x, y: y)
    assert isinstance(kept.of(network), PlainVelocity)
    hook.remove()
    assert isinstance(kept.of(network), InferenceForm)


def test_refresh_makes_the_form_anew():
    network, kept = tiny(), KeptForm()
    before = kept.of(network)
    kept.refresh()
    assert kept.of(network) is not before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_another_form(dtype):
    network, kept, z = tiny(), KeptForm(), state()
    kept.of(network)(z, 0.3)
    velocity = kept.of(network.to(dtype))
    assert velocity.dtype == dtype
    numbers = network.out.conv.weight.data.view(-1)
    numbers[[0, 1]] *= -1
    assert kept.of(network) is not velocity


def test_a_network_of_somebody_s_own_is_no_reason_to_say_anything(caplog):
    with caplog.at_level(logging.WARNING):
        assert isinstance(KeptForm().of(nn.Linear(2, 2)), PlainVelocity)
    assert not caplog.records


def test_dropout_at_work_is_refused():
    network = tiny(dropout=0.5).train()
    with pytest.raises(ValueError, match=r"drops values in training mode; call network\.eval\(\) first"):
        inference_form(network)
    inference_form(tiny(dropout=0.0).train())
    assert isinstance(KeptForm().of(network), InferenceForm)  # whoever keeps a form evaluates in evaluation mode


def test_a_layer_that_the_form_does_not_know_runs_plainly(monkeypatch):
    """What a developer sees who adds a layer, or an attribute to one, and does nothing else."""

    class Gated(ResBlock):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.gate = nn.Parameter(torch.tensor(0.5))

        def forward(self, x, embedding):
            return self.gate * super().forward(x, embedding)

    monkeypatch.setattr("msf.network.unet.ResBlock", Gated)
    structure._expected.cache_clear()
    network, z = tiny(), state()
    assert "does not know: a " in reason_against(network)
    torch.testing.assert_close(KeptForm().of(network)(z, 0.3), network(z, 0.3), rtol=0, atol=0)


def test_a_new_attribute_of_a_known_layer_runs_plainly(monkeypatch):
    build = ResBlock.__init__

    def with_gate(self, *args, **options):
        build(self, *args, **options)
        self.gate = nn.Parameter(torch.tensor(0.5))

    monkeypatch.setattr(ResBlock, "__init__", with_gate)
    monkeypatch.setattr(structure, "_CODE", {})  # as if it stood in the file
    structure._expected.cache_clear()
    assert reason_against(tiny()).endswith("has what the inference form does not know: gate")
