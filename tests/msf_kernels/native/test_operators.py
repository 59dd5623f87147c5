"""The operators that the extension registers with torch; private names are used on purpose."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import msf_kernels
from msf_kernels import (
    BackendUnavailableError,
    conv3x3,
    explain,
    group_norm_silu,
    pack_weight,
    rk_combine,
    symmetric_path,
)
from msf_kernels.conv3x3 import convolve_transformed, transform_weight
from msf_kernels.conv3x3._forms import Form

pytestmark = pytest.mark.usefixtures("native")

FORMATS = [torch.contiguous_format, torch.channels_last]


def operators():
    return torch.ops.msf_native


def normal(*shape, dtype=torch.float32, memory_format=None):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    return values if memory_format is None else values.contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("dt_items", [None, torch.tensor([0.1, -0.2, 0.3])], ids=["number", "per item"])
def test_the_combination_passes_opcheck(dt_items, memory_format):
    state = normal(3, 2, 4, 5, memory_format=memory_format)
    slopes = [state.half(), normal(3, 2, 4, 5)]
    arguments = (state, slopes, [0.5, 0.25], 0.3, dt_items)
    torch.library.opcheck(operators().rk_combine_fwd, arguments)
    torch.library.opcheck(operators().rk_combine_cast_fwd, (*arguments, torch.bfloat16))
    torch.library.opcheck(operators().rk_combine_out, (*arguments, torch.empty_like(state), None))
    torch.library.opcheck(
        operators().rk_combine_out, (*arguments, torch.empty_like(state), torch.empty_like(slopes[0]))
    )
    torch.library.opcheck(operators().rk_combine_bwd, (state, [0.5, 0.25], 0.3, dt_items, [0, 2]))
    torch.library.opcheck(operators().rk_combine_bwd_dt, (state, slopes, [0.5, 0.25]))


def test_the_noise_passes_opcheck():
    index = torch.tensor([0, 7, 2**40 + 1])
    torch.library.opcheck(operators().philox_normal_fwd, (index, (2, 3, 5), 2**62 + 3, 1, torch.float16))
    torch.library.opcheck(operators().philox_normal_fwd, (index, (), 0, 0, torch.float64))
    torch.library.opcheck(operators().philox_words_fwd, (torch.arange(20).view(5, 4), torch.tensor([3, 4])))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("n_times", [1, 2])
def test_the_path_passes_opcheck(n_times, memory_format):
    image, semantic = normal(3, 2, 4, 5, memory_format=memory_format), normal(3, 4, 4, 5)
    t = torch.rand(3) if n_times == 1 else torch.rand(3, 2)
    torch.library.opcheck(operators().symmetric_path_fwd, (image, semantic, t, torch.arange(3), 5, 1e-4))
    grad = normal(3, 6, 4, 5, memory_format=memory_format)
    torch.library.opcheck(operators().symmetric_path_bwd, (grad, grad.contiguous(), t, 1e-4, 2))


def test_the_attention_passes_opcheck():
    qkv = normal(2, 7, 96, dtype=torch.bfloat16)
    torch.library.opcheck(operators().spatial_attention_fwd, (qkv, 2, False))
    torch.library.opcheck(operators().spatial_attention_fwd, (qkv, 1, True))


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
def test_the_convolution_passes_opcheck(form, memory_format):
    x = normal(2, 5, 6, 7, memory_format=memory_format)
    weight = pack_weight(normal(9, 5, 3, 3), upsample=form in (Form.DOUBLING, Form.DOUBLING_TWO))
    torch.library.opcheck(operators().convolution_weight, (weight, form))
    transformed = operators().convolution_weight(weight, form)
    for stride in (1, 2) if form == Form.DIRECT else (1,):
        out = operators().convolution_fwd(x, transformed, None, None, 9, form, stride)
        torch.library.opcheck(operators().convolution_fwd, (x, transformed, normal(9), out, 9, form, stride))
    torch.library.opcheck(operators().convolution_fwd, (x[:0], transformed, None, None, 9, form, 1))


def test_the_direct_convolution_of_doubled_maps_passes_opcheck():
    weight = pack_weight(normal(9, 5, 3, 3), upsample=True)
    torch.library.opcheck(operators().convolution_weight, (weight, Form.DIRECT))
    transformed = operators().convolution_weight(weight, Form.DIRECT)
    arguments = (normal(2, 5, 6, 7), transformed, None, None, 9, Form.DIRECT, 1)
    torch.library.opcheck(operators().convolution_fwd, arguments)


@pytest.mark.usefixtures("pair_dots")
@pytest.mark.parametrize("upsample", [False, True])
def test_the_convolution_of_pairs_passes_opcheck(upsample):
    x = normal(2, 5, 6, 7, dtype=torch.bfloat16)
    weight = transform_weight(normal(9, 5, 3, 3), 6, 7, upsample=upsample, dtype=torch.bfloat16)
    bias = normal(9, dtype=torch.bfloat16)
    torch.library.opcheck(operators().convolution_fwd, (x, weight.values, bias, None, 9, weight.form, 1))


def test_the_pointwise_convolution_passes_opcheck():
    transformed = operators().convolution_weight(normal(40, 5, 1, 1), Form.DIRECT)
    x = normal(2, 5, 6, 7)
    torch.library.opcheck(operators().convolution_fwd, (x, transformed, None, None, 40, Form.DIRECT, 1))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("needs_codes", [True, False])
def test_the_distance_passes_opcheck(needs_codes, memory_format):
    semantic, codes = normal(3, 2, 4, 5, memory_format=memory_format), normal(6, 2, dtype=torch.float64)
    torch.library.opcheck(operators().class_distance_fwd, (semantic, codes))
    torch.library.opcheck(operators().class_distance_bwd, (normal(3, 6), semantic, codes, needs_codes))


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("has_all", [True, False], ids=["with everything", "plain"])
def test_the_norm_passes_opcheck(has_all, memory_format):
    x = normal(3, 6, 4, 5, dtype=torch.bfloat16, memory_format=memory_format)
    skip = normal(3, 2, 4, 5, dtype=torch.bfloat16) if has_all else None
    rows = [normal(3, 8), normal(1, 8), normal(3, 8).half()] if has_all else [None, None, None]
    n_channels = 8 if has_all else 6
    weight, bias = normal(n_channels), normal(n_channels).double()
    torch.library.opcheck(operators().group_norm_silu_fwd, (x, 2, weight, bias, skip, *rows, 1e-5, True))
    out, mean, rstd = operators().group_norm_silu_fwd(x, 2, weight, bias, skip, *rows, 1e-5, True)
    backward = (out, mean, rstd, x, 2, weight, bias, skip, *rows, True)
    torch.library.opcheck(operators().group_norm_silu_bwd, backward)


def test_strides_that_fit_no_memory_format_serve_and_come_out_as_documented():
    state = normal(4, 3, 5, 6).transpose(2, 3)
    slope = normal(4, 3, 6, 5)[..., :].flip(0)
    got = rk_combine(state, [slope], [1.0], normal(4), backend="native")
    expected = rk_combine(state, [slope], [1.0], normal(4), backend="reference")
    torch.testing.assert_close(got, expected)
    assert got.stride() == expected.stride()
    x = normal(6, 8, 4, 3).permute(3, 1, 2, 0)
    got = group_norm_silu(x, 2, torch.ones(8), torch.zeros(8), backend="native")
    expected = group_norm_silu(x, 2, torch.ones(8), torch.zeros(8), backend="reference")
    torch.testing.assert_close(got, expected)
    assert got.stride() == expected.stride()


def test_an_output_of_any_strides_is_filled_also_where_it_is_the_state():
    state, slope = normal(4, 3, 5, 6), normal(4, 3, 5, 6)
    expected = state + 0.5 * slope
    out = torch.full((6, 5, 3, 4), torch.nan).permute(3, 2, 1, 0)
    assert rk_combine(state, [slope], [1.0], 0.5, out=out, backend="native") is out
    torch.testing.assert_close(out, expected)
    rk_combine(state, [slope], [1.0], 0.5, out=state, backend="native")
    torch.testing.assert_close(state, expected)


def test_flops_are_counted_as_for_the_other_family():
    x = normal(2, 8, 3, 5).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        group_norm_silu(x, 2, torch.ones(8), torch.zeros(8), backend="native").sum().backward()
    assert counter.get_total_flops() == x.numel() * (6 + 4 + 11 + 10)


@pytest.mark.parametrize(("kind", "share"), [("plain", 1.0), ("stride", 0.25), ("upsample", 4 * 4 / 9)])
@pytest.mark.parametrize("channels", [4, 64])
def test_flops_of_a_convolution_are_those_of_the_plain_sum(channels, kind, share):
    x, weight = normal(2, channels, 6, 8), normal(40, channels, 3, 3)
    options = {"stride": 2 if kind == "stride" else 1, "upsample": kind == "upsample"}
    with FlopCounterMode(display=False) as counter:
        conv3x3(x, weight, None, backend="native", **options)
    assert counter.get_total_flops() == round(share * 2 * 2 * 40 * channels * 9 * 6 * 8)
    pointwise = transform_weight(weight[:, :, :1, :1], 6, 8)
    with FlopCounterMode(display=False) as counter:
        convolve_transformed(x, pointwise, None)
    assert counter.get_total_flops() == 2 * 2 * 40 * channels * 6 * 8


def test_a_convolution_is_traced_into_one_graph():
    def branch(x, weight, vector, upsample):
        h = conv3x3(x, weight, vector, upsample=upsample, residual=None, backend="native")
        h = h + conv3x3(x, weight, vector, upsample=upsample)
        return convolve_transformed(h, transformed, vector, residual=h)

    x, weight, vector = normal(2, 32, 24, 24), normal(32, 32, 3, 3) / 20, normal(32)
    transformed = transform_weight(weight, 24, 24)
    compiled = torch.compile(branch, fullgraph=True, backend="aot_eager", dynamic=False)
    for upsample in (False, True):
        assert torch.equal(compiled(x, weight, vector, upsample), branch(x, weight, vector, upsample))


def test_what_the_extension_does_not_take_is_refused_with_the_reason():
    state = normal(2, 3)
    with pytest.raises(BackendUnavailableError, match="takes at most 16 slopes; got 17"):
        rk_combine(state, [state] * 17, [1.0] * 17, 0.1, backend="native")
    double = normal(1, 4, 2, 2).double()
    with pytest.raises(BackendUnavailableError, match="float64 is left to the reference"):
        group_norm_silu(double, 2, torch.ones(4), torch.zeros(4), backend="native")
    image, t = normal(2, 1, 3, 3), torch.rand(2, requires_grad=True)
    with pytest.raises(BackendUnavailableError, match="with respect to t exists on the reference only"):
        symmetric_path(image, image, t, sample_index=torch.arange(2), seed=0, backend="native")
    with pytest.raises(BackendUnavailableError, match="at most 1024 channels; got 1025"):
        msf_kernels.class_distance(normal(1, 1025, 1, 1), normal(2, 1025), backend="native")


def test_tensors_on_a_device_without_kernels_are_refused_with_the_reason():
    reasons = explain("class_distance", torch.empty(1, 2, 3, 3, device="meta"), torch.empty(4, 2, device="meta"))
    assert reasons["native"] == ["has no kernel for tensors on meta"]


@pytest.mark.parametrize("n_slopes", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_slopes_is_the_sum_from_the_first_to_the_last(n_slopes, dtype):
    # More than one block, and a rest.
    state, *slopes = normal(n_slopes + 1, 3, 40_001, dtype=dtype)
    weights = [0.5 / (i + 1) for i in range(n_slopes)]
    exact = state.double() + 0.3 * sum(w * slope.double() for w, slope in zip(weights, slopes, strict=True))
    combined = rk_combine(state, slopes, weights, 0.3, backend="native")
    torch.testing.assert_close(combined.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)
    # With a cast another loop serves.
    assert torch.equal(rk_combine(state, slopes, weights, 0.3, cast_to=dtype, backend="native")[0], combined)
    in_place = rk_combine(state, slopes, weights, 0.3, out=state, backend="native")
    assert torch.equal(in_place, combined)


def test_auto_chooses_the_extension_on_a_cpu(monkeypatch):
    from msf_kernels.rk_combine import api

    monkeypatch.delenv("MSF_KERNELS_BACKEND", raising=False)
    state = normal(2, 3)
    chosen = api._operator.choose("auto", state, (state,), (1.0,), 0.1, out=None, cast_to=None)
    assert chosen.name == "native"


@pytest.mark.slow
def test_the_first_calls_of_a_process_compile_into_one_graph_forward_and_backward(run_fresh):
    run_fresh(
        "import torch, msf_kernels as m; torch.manual_seed(0)\n"
        "def loss(x, semantic, weight, index, backend):\n"
        "    noise = m.philox_normal(index, x.shape[1:], 3, backend=backend)\n"
        "    z, dz = m.symmetric_path(x, semantic, index.float() / 4, sample_index=index, seed=1, backend=backend)\n"
        "    h = m.group_norm_silu(z, 2, weight, weight, skip=dz, backend=backend)\n"
        "    h, cast = m.rk_combine(h, [h, h + 1], [0.5, 0.25], index.float(), cast_to=torch.bfloat16,"
        " backend=backend)\n"
        "    distance, votes = m.class_distance(h[:, :4], weight.view(3, 4), backend=backend)\n"
        "    return distance.square().sum() + cast.float().mean() + (votes.sum() + noise.sum())\n"
        "index = torch.arange(4)\n"
        "x = torch.randn(4, 3, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()\n"
        "semantic, weight = torch.randn(4, 3, 5, 6).requires_grad_(), torch.randn(12).requires_grad_()\n"
        "got = torch.compile(loss, fullgraph=True)(x, semantic, weight, index, 'native')\n"
        "expected = loss(x, semantic, weight, index, 'reference')\n"
        "torch.testing.assert_close(got, expected)\n"
        "inputs = (x, semantic, weight)\n"
        "torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(expected, inputs),"
        " rtol=1e-4, atol=1e-5)\n"
    )
