import math

import pytest
import torch
from torch.nn import functional

from msf_kernels import group_norm_silu

BACKENDS = ["reference", "native", pytest.param("triton", marks=pytest.mark.interpreter)]


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def arguments(n=2, channels=6, skip_channels=4, height=3, width=5, dtype=torch.float64, rows=2):
    """x, weight, bias, skip, add, scale, shift; `rows`: 1 or the number of items."""
    total = channels + skip_channels
    return [
        seeded(n, channels, height, width, seed=1, dtype=dtype),
        seeded(total, seed=2, dtype=dtype),
        seeded(total, seed=3, dtype=dtype),
        seeded(n, skip_channels, height, width, seed=4, dtype=dtype),
        *(seeded(rows, total, seed=seed, dtype=dtype) for seed in (5, 6, 7)),
    ]


def call(x, weight, bias, skip, add, scale, shift, *, num_groups=5, **kwargs):
    return group_norm_silu(x, num_groups, weight, bias, skip=skip, add=add, scale=scale, shift=shift, **kwargs)


def by_hand(x, weight, bias, skip, add, scale, shift, *, num_groups=5, eps=1e-5, silu=True):
    """The formula with Python numbers, value by value."""
    h = torch.cat([x, skip], dim=1).tolist()
    n, channels, height, width = len(h), len(weight), x.shape[2], x.shape[3]
    out = torch.empty(n, channels, height, width, dtype=torch.float64)
    size = channels // num_groups
    pixels = [(i, j) for i in range(height) for j in range(width)]
    for item in range(n):
        row = item if len(add) > 1 else 0
        for group in range(num_groups):
            members = range(group * size, (group + 1) * size)
            values = {(c, p): h[item][c][p[0]][p[1]] + add[row, c].item() for c in members for p in pixels}
            mean = math.fsum(values.values()) / len(values)
            var = math.fsum((value - mean) ** 2 for value in values.values()) / len(values)
            for (c, p), value in values.items():
                y = (value - mean) / math.sqrt(var + eps) * weight[c].item() + bias[c].item()
                y = y * (1 + scale[row, c].item()) + shift[row, c].item()
                out[item, c, p[0], p[1]] = y / (1 + math.exp(-y)) if silu else y
    return out


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_norm_is_what_the_formula_gives_by_hand(silu, rows, memory_format):
    x, *rest = arguments(rows=rows)
    x = x.contiguous(memory_format=memory_format)
    got = call(x, *rest, silu=silu, backend="reference")
    torch.testing.assert_close(got, by_hand(x, *rest, silu=silu), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_scale_and_zero_shift_change_nothing(need_backend, backend):
    need_backend("group_norm_silu", backend)
    x, weight, bias, *_ = arguments(channels=10, skip_channels=0, dtype=torch.float32)
    zeros = torch.zeros(1, 10)
    plain = group_norm_silu(x, 5, weight, bias, backend=backend)
    assert torch.equal(group_norm_silu(x, 5, weight, bias, scale=zeros, shift=zeros, backend=backend), plain)
    torch.testing.assert_close(plain, functional.silu(functional.group_norm(x, 5, weight, bias)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("rows", [1, 2])
def test_gradients_of_the_reference_are_right_twice(memory_format, rows):
    x, *rest = arguments(channels=3, skip_channels=2, height=1, width=2, rows=rows)
    inputs = [tensor.requires_grad_() for tensor in (x.contiguous(memory_format=memory_format), *rest)]
    assert torch.autograd.gradcheck(lambda *tensors: call(*tensors, num_groups=1, backend="reference"), inputs)
    assert torch.autograd.gradgradcheck(lambda *tensors: call(*tensors, num_groups=1, backend="reference"), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [7, 96])
def test_a_mean_that_is_large_beside_the_deviation_costs_its_rounding_only(need_backend, backend, memory_format, side):
    need_backend("group_norm_silu", backend)
    x = (seeded(1, 4, side, side) + 1000).float().contiguous(memory_format=memory_format)
    ones, zeros = torch.ones(4), torch.zeros(4)
    exact = functional.group_norm(x.double(), 2)
    got = group_norm_silu(x, 2, ones, zeros, silu=False, backend=backend)
    # x itself carries a rounding of 3e-5; squares would lose 1000^2 * 6e-8 = 0.06.
    assert (got - exact).abs().max() < 2e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("skip_format", [torch.contiguous_format, torch.channels_last])
def test_the_result_is_laid_out_as_x_is(need_backend, backend, memory_format, skip_format):
    need_backend("group_norm_silu", backend)
    x, weight, bias, skip, *_ = arguments(dtype=torch.float32)
    x, skip = x.contiguous(memory_format=memory_format), skip.contiguous(memory_format=skip_format)
    out = group_norm_silu(x, 5, weight, bias, skip=skip, backend=backend)
    assert out.is_contiguous(memory_format=memory_format)
    x.requires_grad_()
    skip.requires_grad_()
    group_norm_silu(x, 5, weight, bias, skip=skip, backend=backend).sum().backward()
    assert x.grad.is_contiguous(memory_format=memory_format)
    assert skip.grad.is_contiguous(memory_format=skip_format)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_views_are_read_as_they_are(need_backend, backend):
    need_backend("group_norm_silu", backend)
    x, *rest = arguments(dtype=torch.float32)
    views = {
        "every other channel": torch.stack([x, x + 7], dim=2).flatten(1, 2)[:, ::2],
        "cropped": functional.pad(x, (2, 1, 3, 1))[:, :, 3:-1, 2:-1],
        "turned": x.transpose(2, 3).contiguous().transpose(2, 3),
        "one item for all": x[:1].expand(2, -1, -1, -1),
    }
    for name, view in views.items():
        expected = call(view.contiguous(), *rest, backend="reference")
        torch.testing.assert_close(
            call(view, *rest, backend=backend), expected, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", [8, 96])
def test_an_item_has_the_same_bits_at_any_position(need_backend, backend, side):
    need_backend("group_norm_silu", backend)
    x, weight, bias, *_ = arguments(4, 8, 0, side, side, dtype=torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    out = group_norm_silu(x, 4, weight, bias, backend=backend)
    assert torch.equal(group_norm_silu(x.flip(0), 4, weight, bias, backend=backend).flip(0), out)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("side", [8, 96])
def test_an_item_has_the_same_bits_in_any_batch(need_backend, backend, side):
    need_backend("group_norm_silu", backend)
    x, weight, bias, *_ = arguments(4, 8, 0, side, side, dtype=torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    together = group_norm_silu(x, 4, weight, bias, backend=backend)
    for i in (0, 3):
        assert torch.equal(group_norm_silu(x[i : i + 1], 4, weight, bias, backend=backend), together[i : i + 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 8, 0, 3), (2, 8, 3, 0)])
def test_empty_maps_give_empty_results_and_zero_gradients(need_backend, backend, shape):
    need_backend("group_norm_silu", backend)
    x = torch.zeros(shape, requires_grad=True)
    weight, bias = torch.ones(8, requires_grad=True), torch.zeros(8, requires_grad=True)
    rows = {name: torch.zeros(1, 8, requires_grad=True) for name in ("add", "scale", "shift")}
    out = group_norm_silu(x, 4, weight, bias, **rows, backend=backend)
    assert out.shape == shape
    gradients = torch.autograd.grad(out.sum(), (x, weight, bias, *rows.values()))
    assert gradients[0].shape == shape
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_neither_bits_nor_dtype(dtype):
    tensors = [tensor.to(dtype) for tensor in arguments(dtype=torch.float32)]
    expected = call(*tensors, backend="reference")
    with torch.autocast("cpu", torch.bfloat16):
        got = call(*tensors, backend="reference")
    assert got.dtype == dtype
    assert torch.equal(got, expected)


def test_parameters_may_be_float32_beside_a_low_precision_map():
    x, *rest = arguments(dtype=torch.float32)
    x, rest[2] = x.bfloat16(), rest[2].bfloat16()
    got = call(x, *rest, backend="reference")
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, call(x.float(), *rest[:2], rest[2].float(), *rest[3:], backend="reference").bfloat16())


@pytest.mark.interpreter
def test_the_kernels_refuse_what_they_were_not_made_for():
    weight = torch.zeros(8192)
    with pytest.raises(RuntimeError, match="takes up to 4096 channels per group; got 8192"):
        group_norm_silu(torch.zeros(1, 8192, 1, 1), 1, weight, weight, backend="triton")
    x, *rest = arguments()
    with pytest.raises(RuntimeError, match="float64 is left to the other backends"):
        call(x, *rest, backend="triton")
    with pytest.raises(RuntimeError, match="interpreter is wrong in bfloat16"):
        call(*(tensor.bfloat16() for tensor in (x, *rest)), backend="triton")


X, W, B = torch.zeros(2, 6, 4, 4), torch.zeros(6), torch.zeros(6)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (([1.0], 3, W, B), {}, TypeError, r"x must be a tensor \[N, C, H, W\]; got list"),
        ((X[0], 3, W, B), {}, ValueError, r"x must be \[N, C, H, W\]; got shape \[6, 4, 4\]"),
        ((X.long(), 3, W, B), {}, TypeError, "x must have dtype .*; got torch.int64"),
        ((X, 3.0, W, B), {}, TypeError, "num_groups must be an integer; got float"),
        ((X, True, W, B), {}, TypeError, "num_groups must be an integer; got bool"),
        ((X, 0, W, B), {}, ValueError, "num_groups must be >= 1; got 0"),
        ((X, 4, W, B), {}, ValueError, r"num_groups must divide the channels of \[N, C, H, W\], 6; got 4"),
        (
            (X, 6, W, B),
            {"skip": X[:, :1]},
            ValueError,
            r"num_groups must divide the channels of \[N, C \+ C_skip, H, W\], 7; got 6",
        ),
        ((X, 3, None, B), {}, TypeError, r"weight must be a tensor \[C\]; got NoneType"),
        ((X, 3, W[:5], B), {}, ValueError, r"weight must be \[C\] = \[6\]; got shape \[5\]"),
        ((X, 3, W, B.int()), {}, TypeError, "bias must have dtype .*; got torch.int32"),
        ((X, 3, W, B[None]), {}, ValueError, r"bias must be \[C\]; got shape \[1, 6\]"),
        ((X, 3, W.to("meta"), B), {}, ValueError, "weight must be on the device of x, cpu; got meta"),
        (
            (X, 3, W, B),
            {"skip": X.half()},
            TypeError,
            "skip must have the dtype of x, torch.float32; got torch.float16",
        ),
        ((X, 3, W, B), {"skip": X.to("meta")}, ValueError, "skip must be on the device of x, cpu; got meta"),
        (
            (X, 3, W, B),
            {"skip": X[:, :, :3]},
            ValueError,
            r"skip must be \[N, C_skip, H, W\] of x = \[2, 6, 4, 4\]; got shape \[2, 6, 3, 4\]",
        ),
        (
            (X, 3, W, B),
            {"add": torch.zeros(3, 6)},
            ValueError,
            r"add must be \[N or 1, C\] = \[2, 6\] or \[1, 6\]; got shape \[3, 6\]",
        ),
        ((X, 3, W, B), {"scale": torch.zeros(6)}, ValueError, r"scale must be \[N or 1, C\]; got shape \[6\]"),
        ((X, 3, W, B), {"shift": torch.zeros(1, 6).bool()}, TypeError, "shift must have dtype .*; got torch.bool"),
        ((X, 3, W, B), {"add": torch.zeros(1, 6, device="meta")}, ValueError, "add must be on the device of x, cpu"),
        ((X, 3, W, B), {"eps": 0.0}, ValueError, "eps must be finite and > 0; got 0.0"),
        ((X, 3, W, B), {"eps": math.inf}, ValueError, "eps must be finite and > 0; got inf"),
        ((X, 3, W, B), {"eps": math.nan}, ValueError, "eps must be finite and > 0; got nan"),
        ((X, 3, W, B), {"eps": "1"}, TypeError, "eps must be a number; got str"),
        ((X, 3, W, B), {"silu": 1}, TypeError, "silu must be True or False; got int"),
        ((X, 3, W, B), {"backend": "cuda"}, ValueError, "backend must be one of auto, .*; got 'cuda'"),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        group_norm_silu(*args, **kwargs)
