"""The native convolution: the definition's values on awkward shapes, bits that do not know the batch, refusals."""

import pytest
import torch
from torch.nn import functional

from msf_kernels import BackendUnavailableError, conv3x3, explain, pack_weight
from msf_kernels.conv3x3 import (
    TransformedWeight,
    convolve_transformed,
    is_native_convolution_faster,
    native_convolution_reasons,
    transform_weight,
)
from msf_kernels.conv3x3._forms import ConvSizes, Form, choose_form
from msf_kernels.testing import assert_within_budget, poison_empty
from msf_kernels.testing.cases import fixed_cases, random_case
from msf_kernels.testing.conformance import PASS, check, expectations

pytestmark = pytest.mark.usefixtures("native")

CPU = torch.device("cpu")
KINDS = ["plain", "stride", "doubled", "pointwise", "pointwise stride"]
N_DRAWS = 100


def seeded(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def weight_of(kind, n_out, channels):
    side = 1 if "pointwise" in kind else 3
    return seeded(n_out, channels, side, side, scale=(side * side * channels) ** -0.5)


def options_of(kind):
    return {"stride": 2 if "stride" in kind else 1, "upsample": kind == "doubled"}


def convolution(kind, weight, height, width):
    """The native convolution with a weight that is transformed once."""
    transformed = transform_weight(weight, height, width, **options_of(kind))
    return lambda x, bias=None, residual=None: convolve_transformed(x, transformed, bias, residual=residual)


def plain(kind, x, weight, bias, residual=None):
    """The definition, in the dtype of its inputs."""
    if kind == "doubled":
        x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
    stride = options_of(kind)["stride"]
    out = functional.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)
    return out if residual is None else out + residual


def failures(case):
    verdicts = check(case, "native", torch.float32, CPU, expectations(case, torch.float32, CPU))
    return [f"{v.case} {v.output}: {v.verdict} {v.note}" for v in verdicts if v.verdict != PASS]


def test_it_keeps_the_error_budget_on_the_shapes_on_which_kernels_break():
    assert not [text for case in fixed_cases("conv3x3") for text in failures(case)]


@pytest.mark.slow
def test_it_keeps_the_error_budget_on_random_draws():
    assert not [text for seed in range(N_DRAWS) for text in failures(random_case("conv3x3", seed))]


# Channels around the 16 lanes, the 32 columns of a panel and the 64 products of a chain; maps around the 4 outputs of a
# tile; rows around the 6 and 14 of a product and the 28 of a block.
SHAPES = [
    (1, 1, 1, 1, 1),
    (3, 5, 1, 1, 6),
    (2, 17, 1, 7, 33),
    (2, 15, 7, 2, 31),
    (1, 16, 5, 4, 16),
    (2, 64, 4, 4, 32),
    (5, 65, 4, 7, 48),
    (2, 130, 9, 6, 100),
    (3, 256, 13, 11, 40),
    (29, 66, 8, 4, 3),
    (70, 12, 2, 3, 2),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_bias_and_residual_are_those_of_the_definition(kind, shape):
    n, channels, height, width, n_out = shape
    x, weight, bias = channels_last(seeded(n, channels, height, width)), weight_of(kind, n_out, channels), seeded(n_out)
    residual = seeded(*plain(kind, x, weight, bias).shape, seed=1)
    with poison_empty(native=True):
        actual = convolution(kind, weight, height, width)(x, bias, residual)
    oracle = plain(kind, x.double(), weight.double(), bias.double(), residual.double())
    error = (actual - oracle).square().mean().sqrt() / oracle.square().mean().sqrt()
    assert error < 1e-6
    assert actual.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [4, 5, 8, 14, 32])
@pytest.mark.parametrize("channels", [16, 64, 128, 384])
@pytest.mark.parametrize("mean", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["plain", "doubled"])
def test_errors_are_within_the_budget_of_the_plain_sum(kind, mean, channels, size):
    x = channels_last(functional.silu(seeded(4, channels, size, size) + mean))
    weight = weight_of(kind, 32, channels)
    packed = pack_weight(weight, upsample=kind == "doubled")

    def convolve(backend, dtype):
        return conv3x3(x.to(dtype), packed.to(dtype), None, upsample=kind == "doubled", backend=backend)

    # The yardstick sums in one chain, as the direct convolutions of libraries do.
    assert_within_budget(
        convolve("native", torch.float32), convolve("reference", torch.float64), convolve("reference", torch.float32)
    )


def test_every_form_is_right_on_maps_that_would_choose_another():
    for channels in (3, 40, 70):
        for height, width in ((1, 1), (2, 3), (6, 5), (9, 4), (12, 17)):
            x, weight = seeded(2, channels, height, width), weight_of("plain", 35, channels)
            oracle = plain("plain", x.double(), weight.double(), None)
            for form in (Form.DIRECT, Form.TWO, Form.FOUR):
                values = torch.ops.msf_native.convolution_weight(weight, form)
                actual = convolve_transformed(x, TransformedWeight(values, channels, 35, form, 1), None)
                torch.testing.assert_close(actual.double(), oracle, rtol=0, atol=2e-5)
            oracle = plain("doubled", x.double(), weight.double(), None)
            for form in (Form.DIRECT, Form.DOUBLING, Form.DOUBLING_TWO):
                values = torch.ops.msf_native.convolution_weight(pack_weight(weight, upsample=True), form)
                actual = convolve_transformed(x, TransformedWeight(values, channels, 35, form, 1), None)
                torch.testing.assert_close(actual.double(), oracle, rtol=0, atol=2e-5)


def test_the_form_with_the_fewest_products_serves():
    for height, width, form in ((1, 1, Form.DIRECT), (2, 2, Form.TWO), (4, 4, Form.FOUR), (6, 6, Form.TWO)):
        assert choose_form(ConvSizes(3, 64, 8, height, width, 1, False, torch.float32)) == form
    for side, channels, height, width, stride, upsample, form in (
        (3, 63, 32, 32, 1, False, Form.TWO),
        (3, 256, 3, 32, 1, False, Form.TWO),
        (3, 256, 32, 32, 2, False, Form.DIRECT),
        (1, 256, 32, 32, 1, False, Form.DIRECT),
        (3, 32, 4, 4, 1, True, Form.DOUBLING),
        (2, 32, 4, 9, 1, True, Form.DOUBLING),
        (3, 31, 4, 4, 1, True, Form.DOUBLING_TWO),
        (3, 32, 3, 9, 1, True, Form.DOUBLING_TWO),
        (3, 32, 1, 1, 1, True, Form.DIRECT),
    ):
        assert choose_form(ConvSizes(side, channels, 8, height, width, stride, upsample, torch.float32)) == form
    for height, width, upsample, form in (
        (32, 32, False, Form.TWO),
        (1, 1, False, Form.DIRECT),
        (16, 16, True, Form.DOUBLING_TWO),
        (1, 1, True, Form.DIRECT),
    ):
        assert choose_form(ConvSizes(3, 256, 32, height, width, 1, upsample, torch.bfloat16)) == form
        assert choose_form(ConvSizes(3, 256, 31, height, width, 1, upsample, torch.bfloat16)) == Form.DIRECT
        assert choose_form(ConvSizes(3, 31, 256, height, width, 1, upsample, torch.bfloat16)) == Form.DIRECT


@pytest.fixture
def threads():
    """Set the number of threads for the test only."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Small maps go whole into one block of tiles, larger ones into many.
@pytest.mark.parametrize(("channels", "height", "width", "n_out"), [(70, 4, 4, 40), (96, 8, 7, 33), (20, 13, 10, 64)])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_know_neither_the_batch_nor_the_neighbours_nor_the_threads(kind, channels, height, width, n_out, threads):
    x, weight, bias = (
        channels_last(seeded(64, channels, height, width)),
        weight_of(kind, n_out, channels),
        seeded(n_out),
    )
    residual = channels_last(seeded(*plain(kind, x, weight, bias).shape, seed=1))
    run = convolution(kind, weight, height, width)
    threads(1)
    together = run(x, bias, residual)
    for n_threads in (1, 2, 5):
        threads(n_threads)
        for n in (1, 2, 3, 7, 16, 64):
            for first in {0, 64 - n, (64 - n) // 3}:
                items = slice(first, first + n)
                assert torch.equal(run(x[items], bias, residual[items]), together[items])
            chosen = torch.randperm(64, generator=torch.Generator().manual_seed(n))[:n]
            assert torch.equal(run(channels_last(x[chosen]), bias, channels_last(residual[chosen])), together[chosen])


def test_the_backend_has_the_bits_of_the_transformed_weight_in_any_batch():
    x, weight, bias = seeded(16, 64, 9, 8), weight_of("plain", 24, 64), seeded(24)
    for kind in ("plain", "stride", "doubled"):
        expected = convolution(kind, weight, 9, 8)(x, bias)
        for given in (weight, pack_weight(weight, upsample=kind == "doubled")):
            for n in (1, 3, 16):
                got = conv3x3(x[:n], given, bias, **options_of(kind), backend="native")
                assert torch.equal(got, expected[:n])


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_any_strides_are_read_where_they_are_or_copied(kind):
    x, weight = seeded(4, 20, 6, 5), weight_of(kind, 24, 20)
    run = convolution(kind, weight, 6, 5)
    residual = seeded(*run(x).shape, seed=1)
    expected = run(x, residual=residual)
    for form in (
        channels_last,
        lambda t: torch.cat([t, t], 1).contiguous(memory_format=torch.channels_last)[:, t.shape[1] :],
        lambda t: channels_last(torch.cat([t, t]))[4:],
        lambda t: channels_last(t.repeat_interleave(2, 0))[::2],
        lambda t: channels_last(t.repeat_interleave(2, 2))[:, :, ::2],
        lambda t: t.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
    ):
        assert torch.equal(run(form(x), residual=form(residual)), expected)
    alike = x[:1].expand(4, -1, -1, -1)
    assert torch.equal(run(alike), run(alike.contiguous()))
    assert torch.equal(
        convolution(kind, weight.flip(0).transpose(0, 1).contiguous().transpose(0, 1).flip(0), 6, 5)(x), run(x)
    )


def test_a_residual_of_single_pixels_belongs_to_its_item():
    x, weight, residual = seeded(3, 4, 1, 1), weight_of("plain", 5, 4), seeded(3, 5, 1, 1, seed=2)
    run = convolution("plain", weight, 1, 1)
    for form in (channels_last, lambda t: torch.cat([t, t], 1)[:, :5], lambda t: t.repeat(1, 1, 3, 3)[:, :, :1, :1]):
        torch.testing.assert_close(run(x, residual=form(residual)), run(x) + residual)


def test_what_is_not_finite_stays_in_its_item():
    x, weight = seeded(3, 64, 8, 8), weight_of("plain", 32, 64)
    run = convolution("plain", weight, 8, 8)
    expected = run(x)
    x[1, 5, 0, 0] = float("inf")
    x[1, 6, 7, 7] = float("nan")
    out = run(x)
    assert torch.equal(out[[0, 2]], expected[[0, 2]])
    assert not out[1, :, :2, :2].isfinite().any()


@pytest.mark.parametrize("channels", [(1, 3), (32, 40), (64, 64), (70, 96)])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"upsample": True}], ids=str)
def test_gradients_are_those_of_float64(channels, options):
    n_in, n_out = channels
    x, weight, bias = seeded(2, n_in, 9, 6), weight_of("plain", n_out, n_in), seeded(n_out)
    given = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    wide = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    shape = conv3x3(x, weight, bias, **options).shape
    residual, grad = seeded(*shape), seeded(*shape)
    residuals = residual.clone().requires_grad_(), residual.double().requires_grad_()
    out = conv3x3(*given, residual=residuals[0], backend="native", **options)
    wanted = conv3x3(*wide, residual=residuals[1], backend="reference", **options)
    found = torch.autograd.grad(out, [*given, residuals[0]], grad)
    for ours, exact in zip(found, torch.autograd.grad(wanted, [*wide, residuals[1]], grad.double()), strict=True):
        error = (ours - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert error < 2e-6


def test_only_the_gradients_that_are_wanted_are_computed():
    x, weight = seeded(2, 32, 8, 8), weight_of("plain", 32, 32).requires_grad_()
    (of_weight,) = torch.autograd.grad(conv3x3(x, weight, None, backend="native").sum(), weight)
    wanted = torch.autograd.grad(torch.nn.functional.conv2d(x, weight, padding=1).sum(), weight)[0]
    torch.testing.assert_close(of_weight, wanted, rtol=1e-4, atol=1e-4)


def test_nothing_to_convolve_gives_an_empty_result():
    weight = weight_of("plain", 6, 4)
    assert convolution("plain", weight, 4, 4)(seeded(0, 4, 4, 4)).shape == (0, 6, 4, 4)
    assert convolution("doubled", weight, 4, 4)(seeded(2, 4, 0, 3)).shape == (2, 6, 0, 6)
    assert convolution("stride", weight, 4, 4)(seeded(2, 4, 5, 0)).shape == (2, 6, 3, 0)


def test_auto_takes_it_on_large_maps_only_and_counts_the_items_where_a_weight_learns(monkeypatch):
    from msf_kernels import _ext
    from msf_kernels.conv3x3 import api

    monkeypatch.delenv("MSF_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(_ext, "cpu_level", lambda: 1)

    def chosen(x, weight, **options):
        return api._conv.choose("auto", x, weight, None, **options).name

    x, weight = seeded(1, 32, 24, 24), weight_of("plain", 8, 32)
    assert chosen(x, weight) == chosen(x.repeat(9, 1, 1, 1), weight) == "native"
    assert chosen(x, pack_weight(weight, upsample=True), upsample=True) == "native"
    assert chosen(x[:, :16], weight, skip=x[:, 16:]) == "native"
    for other, given, options in (
        (x[:, :, :20], weight, {}),
        (x.repeat(9, 1, 1, 1)[:, :, :20], weight, {}),
        (x[:, :1].expand(-1, 512, -1, -1), weight[:1, :1].expand(512, 512, -1, -1), {}),
        (x, weight, {"stride": 2}),
        (x[:, :15], weight[:, :15], {}),
        (x.bfloat16(), weight.bfloat16(), {}),
        (x.double(), weight.double(), {}),
        (x[:, :, :20], weight.clone().requires_grad_(), {}),
        (x.repeat(9, 1, 1, 1)[:, :, :20].requires_grad_(), weight, {}),
    ):
        assert chosen(other, given, **options) == "aten"
    learning = weight.clone().requires_grad_()
    assert chosen(x, learning) == chosen(x.clone().requires_grad_(), weight) == "native"
    assert chosen(x.repeat(9, 1, 1, 1)[:, :, :20], learning) == "native"
    with torch.no_grad():
        assert chosen(x.repeat(9, 1, 1, 1)[:, :, :20], learning) == "aten"
    monkeypatch.setattr(_ext, "cpu_level", lambda: 0)
    assert chosen(x, weight) == "aten"


def test_the_rule_for_transformed_weights_reads_sizes_and_the_processor(monkeypatch):
    from msf_kernels import _ext

    monkeypatch.setattr(_ext, "cpu_level", lambda: 2)
    monkeypatch.setattr(_ext, "has_pair_dots", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    weight = torch.zeros(8, 32, 3, 3)
    assert is_native_convolution_faster(weight, 4, 4)
    assert is_native_convolution_faster(pack_weight(weight, upsample=True), 4, 4, upsample=True)
    assert not is_native_convolution_faster(weight, 32, 32, stride=2)
    assert not is_native_convolution_faster(weight[..., :1, :1], 32, 32)
    assert not is_native_convolution_faster(weight[:, :8], 32, 32)
    assert not is_native_convolution_faster(weight, 1, 1)
    assert not is_native_convolution_faster(weight, 2, 2, upsample=True)
    assert not is_native_convolution_faster(weight.to("meta"), 32, 32)
    halves = weight.repeat(4, 1, 1, 1).bfloat16()
    assert not is_native_convolution_faster(halves[:31], 32, 32)
    assert is_native_convolution_faster(halves, 32, 32)
    assert is_native_convolution_faster(halves, 2, 2, upsample=True)
    assert not is_native_convolution_faster(halves, 32, 32, stride=2)
    with monkeypatch.context() as patch:
        patch.setattr(_ext, "has_pair_dots", lambda: False)
        assert not is_native_convolution_faster(halves, 32, 32)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert not is_native_convolution_faster(halves, 32, 32)
        assert is_native_convolution_faster(weight, 32, 32)
    monkeypatch.setattr(_ext, "cpu_level", lambda: 0)
    assert not is_native_convolution_faster(weight, 4, 4)


def test_what_it_does_not_take_is_refused_with_the_reason():
    x, weight = torch.zeros(1, 4, 4, 4), torch.zeros(6, 4, 3, 3)
    for inputs, reason in (
        ((x.double(), weight.double()), "convolves float32 and bfloat16; got torch.float64"),
        ((x.half(), weight.half()), "convolves float32 and bfloat16; got torch.float16"),
    ):
        with pytest.raises(BackendUnavailableError, match=reason):
            conv3x3(*inputs, None, backend="native")
    reasons = explain("conv3x3", x.to("meta"), weight.to("meta"), None)["native"]
    assert reasons == ["has no kernel for tensors on meta"]
    assert native_convolution_reasons(torch.device("cuda"), torch.float16) == [
        "has no kernel for tensors on cuda",
        "convolves float32 and bfloat16; got torch.float16",
    ]


X, W = torch.zeros(2, 4, 6, 6), torch.zeros(8, 4, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: transform_weight([1.0], 4, 4), TypeError, r"weight must be a tensor \[K, C, 3, 3\]; got list"),
        (
            lambda: transform_weight(W.half(), 4, 4),
            TypeError,
            "weight must have dtype torch.float32 or torch.bfloat16; got torch.float16",
        ),
        (lambda: transform_weight(W[..., :2], 4, 4), ValueError, r"\[8, 4, 3, 3\] or \[8, 4, 1, 1\]; got shape"),
        (lambda: transform_weight(W[..., :1, :1], 4, 4, upsample=True), ValueError, r"\[8, 4, 3, 3\]; got shape"),
        (lambda: transform_weight(W[:0], 4, 4), ValueError, "with K and C >= 1"),
        (lambda: transform_weight(W, 4, -1), ValueError, "width must be >= 0; got -1"),
        (lambda: transform_weight(W, 4.0, 4), TypeError, "height must be an int"),
        (lambda: transform_weight(W, 4, 4, stride=0), ValueError, "stride must be >= 1; got 0"),
        (
            lambda: transform_weight(W, 4, 4, stride=2, upsample=True),
            ValueError,
            "stride must be 1 with upsample; got 2",
        ),
        (lambda: transform_weight(W.to("meta"), 4, 4), RuntimeError, "has no kernel for tensors on meta"),
        (lambda: convolve_transformed(X, W, None), TypeError, "weight must be a TransformedWeight"),
    ],
)
def test_a_weight_that_cannot_be_transformed_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((X[0], None), {}, ValueError, r"x must be \[N, C, H, W\]; got shape"),
        ((X.half(), None), {}, TypeError, "x must have dtype torch.float32; got torch.float16"),
        ((X[:, :3], None), {}, ValueError, r"x must be \[N, C, H, W\] = \[2, 4, 6, 6\]; got shape \[2, 3, 6, 6\]"),
        ((X, torch.zeros(7)), {}, ValueError, r"bias must be \[K\] = \[8\]; got shape \[7\]"),
        ((X, torch.zeros(8).double()), {}, TypeError, "bias must have dtype torch.float32; got torch.float64"),
        ((X, None), {"residual": X}, ValueError, r"residual must be \[N, K, OH, OW\] = \[2, 8, 6, 6\]"),
        ((X.clone().requires_grad_(), None), {}, NotImplementedError, "has no gradient and no derivative: use conv3x3"),
    ],
)
def test_maps_that_do_not_fit_are_refused(args, kwargs, error, message):
    x, bias = args
    with pytest.raises(error, match=message):
        convolve_transformed(x, transform_weight(W, 6, 6), bias, **kwargs)


def test_the_operators_themselves_refuse_what_would_read_beyond_memory():
    weight, fwd = torch.ops.msf_native.convolution_weight, torch.ops.msf_native.convolution_fwd
    good, doubled = weight(W, Form.FOUR), weight(pack_weight(W, upsample=True), Form.DIRECT)
    for call, message in (
        (lambda: weight(W, 7), "form must be 0 to 4; got 7"),
        (lambda: weight(W, Form.DOUBLING), "weight must have 5 axes for form 3"),
        (lambda: weight(W[..., :1, :1], Form.TWO), "weight has not the taps of form 1"),
        (lambda: weight(W.double(), Form.TWO), "weight must be float32"),
        (lambda: fwd(X, good, None, None, 8, Form.TWO, 1), "weight must be what convolution_weight made for form 1"),
        (lambda: fwd(X, good, None, None, 40, Form.FOUR, 1), "weight must be what convolution_weight made"),
        (lambda: fwd(X[:, :3], good, None, None, 8, Form.FOUR, 1), "weight must be what convolution_weight made"),
        (lambda: fwd(X, good, None, None, 8, Form.FOUR, 2), "stride must be 1, or more in the direct form; got 2"),
        (lambda: fwd(X, doubled, None, None, 8, Form.DIRECT, 2), "stride must be 1 for doubled maps; got 2"),
        (lambda: fwd(X, good, torch.zeros(7), None, 8, Form.FOUR, 1), "bias must have 8 elements"),
        (lambda: fwd(X, good, None, X, 8, Form.FOUR, 1), "residual must have the shape of the result"),
        (lambda: fwd(X.half(), good, None, None, 8, Form.FOUR, 1), "x must be float32"),
        (lambda: fwd(X[0], good, None, None, 8, Form.FOUR, 1), r"x must be \[N, C, H, W\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()
