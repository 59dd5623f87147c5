import math

import pytest
import torch

from msf_kernels import spatial_attention

BACKENDS = ["reference", "sdpa", pytest.param("triton", marks=pytest.mark.interpreter)]
ORDERS = ["legacy", "new"]


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def head_by_head(qkv, num_heads, order):
    """One head after the other, one query after the other; slices written out for each order."""
    n, n_tokens, packed = qkv.shape
    channels = packed // 3
    head_dim = channels // num_heads
    out = torch.empty(n, n_tokens, channels, dtype=torch.float64)
    for item in range(n):
        for head in range(num_heads):
            if order == "legacy":  # head 0: q k v, head 1: q k v, ...
                start = head * 3 * head_dim
                q, k, v = (qkv[item, :, start + i * head_dim : start + (i + 1) * head_dim] for i in range(3))
            else:  # all q, all k, all v
                start = head * head_dim
                q, k, v = (qkv[item, :, start + i * channels : start + i * channels + head_dim] for i in range(3))
            for i in range(n_tokens):
                scores = [math.fsum((q[i] * k[j]).tolist()) / math.sqrt(head_dim) for j in range(n_tokens)]
                weights = [math.exp(score - max(scores)) for score in scores]
                mixed = sum(weight * v[j] for j, weight in enumerate(weights)) / math.fsum(weights)
                out[item, i, head * head_dim : (head + 1) * head_dim] = mixed
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "n_tokens", "num_heads", "head_dim"), [(2, 5, 3, 4), (1, 9, 1, 24), (3, 3, 2, 16)])
def test_both_orders_agree_with_a_loop_over_heads(need_backend, backend, order, n, n_tokens, num_heads, head_dim):
    need_backend("spatial_attention", backend)
    dtype, tolerance = (torch.float32, 1e-6) if backend == "triton" else (torch.float64, 1e-14)
    qkv = seeded(n, n_tokens, 3 * num_heads * head_dim, dtype=dtype)
    got = spatial_attention(qkv, num_heads, order=order, backend=backend)
    torch.testing.assert_close(got.double(), head_by_head(qkv.double(), num_heads, order), rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_orders_differ_by_a_permutation_of_channels_in_results_and_gradients(need_backend, backend):
    need_backend("spatial_attention", backend)
    num_heads, head_dim = 3, 16
    legacy = seeded(2, 20, 3 * num_heads * head_dim, dtype=torch.float32)
    new = legacy.view(2, 20, num_heads, 3, head_dim).transpose(2, 3).flatten(2)
    upstream = seeded(2, 20, num_heads * head_dim, seed=1, dtype=torch.float32)
    results = {}
    for order, qkv in (("legacy", legacy), ("new", new)):
        qkv = qkv.clone().requires_grad_()
        out = spatial_attention(qkv, num_heads, order=order, backend=backend)
        (gradient,) = torch.autograd.grad(out, qkv, upstream)
        results[order] = out.detach(), gradient
    back = results["new"][1].view(2, 20, 3, num_heads, head_dim).transpose(2, 3).flatten(2)
    torch.testing.assert_close(results["legacy"][0], results["new"][0], rtol=0, atol=2e-7)
    torch.testing.assert_close(results["legacy"][1], back, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_are_right(backend, order):
    qkv = seeded(2, 3, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: spatial_attention(x, 2, order=order, backend=backend), (qkv,))
    if backend == "reference":
        assert torch.autograd.gradgradcheck(lambda x: spatial_attention(x, 2, order=order, backend=backend), (qkv,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_of_hundreds_do_not_overflow(need_backend, backend):
    need_backend("spatial_attention", backend)
    qkv = torch.zeros(1, 4, 3 * 16)
    qkv[..., :16] = 40.0 * torch.eye(4).repeat(1, 4)
    qkv[..., 16:32] = 40.0 * torch.eye(4).repeat(1, 4)
    qkv[..., 32:] = torch.arange(4.0)[:, None] + 1
    qkv.requires_grad_()
    out = spatial_attention(qkv, 1, order="legacy", backend=backend)
    torch.testing.assert_close(out, qkv[..., 32:], rtol=0, atol=0)
    out.sum().backward()
    assert qkv.grad.isfinite().all()


@pytest.mark.interpreter
def test_scores_far_below_zero_keep_gradients_finite():
    # Every score is -1600: a key beyond the last one, with score 0, must not enter with the weight 2^2308.
    qkv = torch.zeros(1, 5, 3 * 16)
    qkv[..., :16], qkv[..., 16:32], qkv[..., 32:] = 20.0, -20.0, seeded(1, 5, 16, dtype=torch.float32)
    qkv.requires_grad_()
    out = spatial_attention(qkv, 1, backend="triton")
    torch.testing.assert_close(out, qkv[..., 32:].mean(1, keepdim=True).expand(1, 5, 16))
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    exact = qkv.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(spatial_attention(exact, 1, backend="reference").sum(), exact)
    # The weights come again from a log-sum-exp near -2308, whose float32 neighbours are 2.4e-4 apart.
    tolerance = 2e-4 * float(expected.abs().max())
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS)
def test_strided_views_are_read_as_they_are(need_backend, backend, order):
    need_backend("spatial_attention", backend)
    qkv = seeded(2, 12, 96, dtype=torch.float32)
    feature_map = qkv.transpose(1, 2).reshape(2, 96, 3, 4)
    views = {
        "channels-last map": feature_map.contiguous(memory_format=torch.channels_last)
        .permute(0, 2, 3, 1)
        .flatten(1, 2),
        "contiguous map": feature_map.permute(0, 2, 3, 1).flatten(1, 2),
        "longer rows": torch.cat([qkv, qkv + 7], dim=2)[:, :, :96],
        "other items first": torch.stack([qkv + 7, qkv]).unbind(0)[1],
        "channels apart": qkv.repeat_interleave(2, dim=2)[:, :, ::2],
    }
    expected = spatial_attention(qkv, 2, order=order, backend="reference")
    for name, view in views.items():
        assert torch.equal(view, qkv)
        got = spatial_attention(view, 2, order=order, backend=backend)
        torch.testing.assert_close(got, expected, msg=lambda text, n=name: f"{n}: {text}")
        assert got.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_tokens", [64, 150])
def test_an_item_has_the_same_bits_at_any_position(need_backend, backend, n_tokens):
    need_backend("spatial_attention", backend)
    qkv = seeded(4, n_tokens, 96, dtype=torch.float32)
    out = spatial_attention(qkv, 2, backend=backend)
    assert torch.equal(spatial_attention(qkv.flip(0), 2, backend=backend).flip(0), out)


@pytest.mark.interpreter
@pytest.mark.parametrize("n_tokens", [64, 150])
def test_an_item_has_the_same_bits_in_any_batch(n_tokens):
    qkv = seeded(4, n_tokens, 96, dtype=torch.float32)
    together = spatial_attention(qkv, 2, backend="triton")
    for i in (0, 3):
        assert torch.equal(spatial_attention(qkv[i : i + 1], 2, backend="triton"), together[i : i + 1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 4, 24), (2, 0, 24)])
def test_empty_tensors_give_empty_results_and_gradients(need_backend, backend, shape):
    need_backend("spatial_attention", backend)
    qkv = torch.zeros(shape, requires_grad=True)
    out = spatial_attention(qkv, 2, backend=backend)
    assert out.shape == (*shape[:2], 8)
    out.sum().backward()
    assert qkv.grad.shape == shape


@pytest.mark.parametrize("backend", ["reference", "sdpa"])
def test_autocast_changes_neither_bits_nor_dtype(backend):
    qkv = seeded(2, 9, 48, dtype=torch.float32)
    expected = spatial_attention(qkv, 2, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = spatial_attention(qkv, 2, backend=backend)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.interpreter
def test_the_kernels_refuse_what_they_were_not_made_for():
    with pytest.raises(RuntimeError, match="takes head dimensions up to 128; got 136"):
        spatial_attention(torch.zeros(1, 2, 3 * 136), 1, backend="triton")
    with pytest.raises(RuntimeError, match="float64 is left to the other backends"):
        spatial_attention(torch.zeros(1, 2, 48).double(), 1, backend="triton")
    with pytest.raises(RuntimeError, match="interpreter is wrong in bfloat16"):
        spatial_attention(torch.zeros(1, 2, 48).bfloat16(), 1, backend="triton")


QKV = torch.zeros(2, 4, 24)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (([1.0], 2), {}, TypeError, r"qkv must be a tensor \[N, T, 3C\]; got list"),
        ((QKV[0], 2), {}, ValueError, r"qkv must be \[N, T, 3C\]; got shape \[4, 24\]"),
        ((QKV.long(), 2), {}, TypeError, "qkv must have dtype .*; got torch.int64"),
        ((QKV, 2.0), {}, TypeError, "num_heads must be an integer; got float"),
        ((QKV, 0), {}, ValueError, "num_heads must be >= 1; got 0"),
        (
            (QKV, 3),
            {},
            ValueError,
            r"qkv must be \[N, T, 3C\] with C > 0 and divisible by num_heads = 3; got 3C = 24",
        ),
        ((QKV[..., :0], 1), {}, ValueError, "with C > 0 and divisible by num_heads = 1; got 3C = 0"),
        ((QKV, 2), {"order": "old"}, ValueError, "order must be one of legacy, new; got 'old'"),
        ((QKV, 2), {"order": None}, TypeError, "order must be a string; got NoneType"),
        (
            (QKV, 2),
            {"backend": "cudnn"},
            ValueError,
            "backend must be one of auto, triton, native, sdpa, .*; got 'cudnn'",
        ),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        spatial_attention(*args, **kwargs)
