import copy

import pytest
import torch
from torch.autograd.forward_ad import dual_level, make_dual
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels import BackendUnavailableError, backends, explain, prepared_convolution, use_backend
from msf_kernels.prepared import OutputNorm
from msf_kernels.prepared._fixed import FixedConvolution
from msf_kernels.prepared._subpixel import subpixel_weight

BACKENDS = sorted(backends()["prepared_convolution"])
FORMS = {
    "3x3": ({"padding": 1}, 3),
    "halved": ({"padding": 1, "stride": 2}, 3),
    "1x1": ({}, 1),
    "doubled": ({"padding": 1, "upsample": True}, 3),
}


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def plain(x, weight, bias, *, stride=1, padding=0, upsample=False):
    x = F.interpolate(x, scale_factor=2.0) if upsample else x
    return F.conv2d(x, weight, bias, stride, padding)


@pytest.fixture(params=BACKENDS)
def backend(request, need_backend):
    need_backend("prepared_convolution", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("options", "size"), FORMS.values(), ids=FORMS)
def test_it_is_the_convolution(backend, options, size, dtype):
    weight, bias, x = drawn(6, 4, size, size), drawn(6), drawn(2, 4, 8, 6, dtype=dtype, seed=1)
    prepared = prepared_convolution(weight, bias, dtype=dtype, backend=backend, **options)
    assert prepared.backend is None
    try:
        actual = prepared(x)
    except BackendUnavailableError:
        assert backend in ("native", "onednn", "triton") and dtype != torch.float32  # noqa: PT018
        return
    assert (actual.dtype, prepared.backend) == (dtype, backend)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    expected = plain(x.double(), weight.to(dtype).double(), bias.to(dtype).double(), **options)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("consumed", [False, True])
@pytest.mark.parametrize(("options", "size"), FORMS.values(), ids=FORMS)
def test_a_residual_is_added_and_kept_unless_given_away(backend, options, size, consumed):
    weight, x = drawn(6, 4, size, size), drawn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    expected = plain(x, weight, None, **options)
    residual = torch.ones_like(expected)
    prepared = prepared_convolution(weight, backend=backend, **options)
    result = prepared(x, residual=residual, consume_residual=consumed)
    torch.testing.assert_close(result, expected + 1, rtol=1e-5, atol=1e-5)
    if not consumed:
        assert (residual == 1).all()


@pytest.mark.parametrize(("options", "size"), FORMS.values(), ids=FORMS)
def test_a_call_may_bring_its_own_bias_and_another_size(backend, options, size):
    weight, bias = drawn(6, 4, size, size), drawn(6, seed=1)
    prepared = prepared_convolution(weight, drawn(6), backend=backend, **options)
    for height, width in ((4, 4), (10, 2), (0, 4), (6, 6)):
        x = drawn(3, 4, height, width)
        expected = plain(x, weight, bias, **options) if x.numel() else x.new_zeros(prepared(x).shape)
        torch.testing.assert_close(prepared(x, bias=bias), expected, rtol=1e-5, atol=1e-5)


def epilogue(x, weight, bias, residual, shortcut, shortcut_weight, norm):
    """The sum and its norm, in PyTorch's own functions."""
    out = F.conv2d(x, weight, bias, padding=1) + residual
    out = out + F.conv2d(torch.cat(shortcut, dim=1), shortcut_weight[:, :, None, None])
    return F.silu(F.group_norm(out, norm.num_groups, norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("size", [6, 8, 9])  # up to 64 pixels the norm belongs to the launch in Triton
def test_a_call_adds_shortcuts_and_normalises_the_sum(backend, size):
    weight, shortcut_weight, bias = drawn(8, 4, 3, 3), drawn(8, 5, seed=2), drawn(8, seed=3)
    norm = OutputNorm(2, drawn(8, seed=4), drawn(8, seed=5))
    x, residual = drawn(2, 4, size, size, seed=6), drawn(2, 8, size, size, seed=7)
    shortcut = [drawn(2, channels, size, size, seed=8) for channels in (3, 2)]
    prepared = prepared_convolution(weight, bias, padding=1, shortcut_weight=shortcut_weight, backend=backend)
    expected = epilogue(x, weight, bias, residual, shortcut, shortcut_weight, norm)
    kept = [each.clone() for each in (residual, *shortcut)]
    for _ in range(2):
        got = prepared(x, residual=residual, shortcut=shortcut, norm=norm)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(each, before) for each, before in zip((residual, *shortcut), kept, strict=True))


def test_a_wrong_epilogue_is_refused():
    x, size = drawn(1, 4, 4, 4), (1, 5, 4, 4)
    plain_one = prepared_convolution(drawn(6, 4, 3, 3), padding=1)
    prepared = prepared_convolution(drawn(6, 4, 3, 3), padding=1, shortcut_weight=drawn(6, 5))
    norm = OutputNorm(2, drawn(6), drawn(6))
    for call, error, message in (
        (lambda: plain_one(x, shortcut=[drawn(*size)]), ValueError, "shortcut must be one or two maps of 0 channels"),
        (lambda: prepared(x), ValueError, "shortcut must be one or two maps of 5 channels"),
        (
            lambda: prepared(x, shortcut=[drawn(1, 4, 4, 4)]),
            ValueError,
            r"of 5 channels .*; got \[\[1, 4, 4, 4",
        ),
        (lambda: prepared(x, shortcut=[drawn(1, 5, 4, 2)]), ValueError, r"shortcut must be \[N, Cs, H', W'\]"),
        (lambda: prepared(x, shortcut=[drawn(*size).double()]), TypeError, "shortcut must have the dtype of x"),
        (lambda: plain_one(x, norm=(2, drawn(6), drawn(6))), TypeError, "norm must be an OutputNorm; got tuple"),
        (lambda: plain_one(x, norm=norm._replace(num_groups=4)), ValueError, "norm.num_groups must divide the output"),
        (lambda: plain_one(x, norm=norm._replace(weight=drawn(4))), ValueError, r"norm.weight must be \[K\] = \[6\]"),
        (lambda: plain_one(x, norm=norm._replace(eps=0.0)), ValueError, "norm.eps must be finite and > 0"),
        (
            lambda: prepared_convolution(drawn(6, 4, 3, 3), shortcut_weight=drawn(5, 4)),
            ValueError,
            "shortcut_weight must",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_later_changes_of_the_weights_have_no_effect(backend):
    weight, bias, x = drawn(6, 4, 3, 3), drawn(6), drawn(2, 4, 8, 8)
    prepared = prepared_convolution(weight, bias, padding=1, backend=backend)
    expected = F.conv2d(x, weight, bias, padding=1)
    weight.mul_(2)
    bias.mul_(2)
    torch.testing.assert_close(prepared(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prepared(x), expected, rtol=1e-5, atol=1e-5)


def test_the_backend_that_serves_first_stays():
    prepared = prepared_convolution(drawn(6, 4, 3, 3), padding=1)
    with use_backend("reference"):
        prepared(drawn(1, 4, 8, 8))
    prepared(drawn(1, 4, 8, 8))
    assert prepared.backend == "reference"


def test_an_empty_map_decides_nothing():
    prepared = prepared_convolution(drawn(6, 4, 3, 3), padding=1)
    assert prepared(drawn(0, 4, 8, 8)).shape == (0, 6, 8, 8)
    assert prepared.backend is None


def test_the_doubling_and_its_convolution_are_one_transposed_convolution():
    weight, x = drawn(5, 3, 3, 3, dtype=torch.float64), drawn(2, 3, 4, 7, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, padding=1)
    actual = F.conv_transpose2d(x, subpixel_weight(weight), stride=2, padding=1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-14)


@pytest.mark.parametrize(("options", "size"), FORMS.values(), ids=FORMS)
def test_the_flop_counter_sees_every_backend(options, size, need_backend):
    need_backend("prepared_convolution", "onednn")
    weight, x = drawn(6, 4, size, size), drawn(2, 4, 8, 8)
    counts = []
    for backend in ("onednn", "aten"):
        prepared = prepared_convolution(weight, backend=backend, **options)
        residual = prepared(x)
        with FlopCounterMode(display=False) as counter:
            prepared(x)
            prepared(x, residual=residual)
            prepared(x, residual=residual, consume_residual=True)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_reasons_are_told_without_running_anything():
    record = FixedConvolution(drawn(6, 4, 1, 1), 1, 0, False, torch.float64, True)
    reasons = explain("prepared_convolution", record, drawn(1, 4, 2, 2, dtype=torch.float64))
    assert reasons["aten"] == reasons["reference"] == []
    assert any("float64" in reason for reason in reasons["triton"])
    assert any("float64" in reason or "without oneDNN" in reason for reason in reasons["onednn"])


def test_a_backend_that_cannot_serve_refuses_and_shows_no_weights():
    prepared = prepared_convolution(drawn(6, 4, 5, 5), padding=2, backend="triton")
    with pytest.raises(BackendUnavailableError, match="5x5 convolution 4 -> 6, stride 1") as error:
        prepared(drawn(1, 4, 8, 8))
    assert "tensor(" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(3, 3)}, ValueError, r"weight must be \[K, C, k, k\]"),
        ({"weight": torch.zeros(3, 3, 3, 1)}, ValueError, r"weight must be \[K, C, k, k\]"),
        ({"weight": torch.zeros(3, 0, 3, 3)}, ValueError, "K, C and k >= 1"),
        ({"weight": torch.zeros(3, 3, 3, 3, dtype=torch.int8)}, TypeError, "weight must have dtype"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must be \[K\]"),
        ({"stride": 0}, ValueError, "stride must be >= 1"),
        ({"padding": 2}, ValueError, "padding must be >= 0 and < 2; got 2"),
        ({"upsample": True, "padding": 0}, ValueError, "upsample must come with 3x3 taps"),
        ({"upsample": 1}, TypeError, "upsample must be True or False"),
        ({"channels_last": None}, TypeError, "channels_last must be True or False"),
        ({"dtype": torch.int8}, TypeError, "dtype must be one of"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"weight": drawn(6, 4, 3, 3), "padding": 1} | change
    with pytest.raises(error, match=message):
        prepared_convolution(**arguments)


def test_bad_maps_are_refused():
    prepared = prepared_convolution(drawn(6, 4, 3, 3), padding=1)
    for x, error, message in (
        (drawn(1, 3, 4, 4), ValueError, r"x must be \[N, C, H, W\]"),
        (drawn(4, 4, 4), ValueError, r"x must be \[N, C, H, W\]"),
        (drawn(1, 4, 4, 4, dtype=torch.float64), TypeError, "x must have dtype torch.float32"),
    ):
        with pytest.raises(error, match=message):
            prepared(x)
    with pytest.raises(ValueError, match=r"residual must be \[N, K, H', W'\]"):
        prepared(drawn(1, 4, 4, 4), residual=drawn(1, 6, 4, 3))
    with pytest.raises(TypeError, match="residual must have the dtype of x"):
        prepared(drawn(1, 4, 4, 4), residual=drawn(1, 6, 4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"bias must be \[K\]"):
        prepared(drawn(1, 4, 4, 4), bias=drawn(5))
    with pytest.raises(ValueError, match="backend must be one of"):
        prepared_convolution(drawn(6, 4, 3, 3), padding=1, backend="cudnn")(drawn(1, 4, 4, 4))


def test_a_gradient_is_refused():
    prepared = prepared_convolution(drawn(6, 4, 3, 3), padding=1)
    with torch.enable_grad():
        with pytest.raises(NotImplementedError, match="prepared_convolution has no gradient"):
            prepared(drawn(1, 4, 4, 4).requires_grad_())
        assert not prepared(drawn(1, 4, 4, 4)).requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_forward_derivative_is_refused():
    prepared = prepared_convolution(drawn(6, 4, 3, 3), padding=1)
    with pytest.raises(NotImplementedError, match="and no derivative"):
        torch.func.jvp(prepared, (drawn(1, 4, 4, 4),), (drawn(1, 4, 4, 4),))
    with dual_level(), pytest.raises(NotImplementedError, match="and no derivative"):
        prepared(make_dual(drawn(1, 4, 4, 4), drawn(1, 4, 4, 4)))


def test_a_copy_serves_before_the_weights_are_laid_out():
    prepared = prepared_convolution(drawn(6, 4, 3, 3), padding=1)
    x = drawn(1, 4, 4, 4)
    assert torch.equal(copy.deepcopy(prepared)(x), prepared(x))
