"""The native attention: the definition's values on awkward shapes, and what it refuses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from msf_kernels import BackendUnavailableError, backends, explain, spatial_attention
from msf_kernels.testing import assert_operator_within_budget

pytestmark = pytest.mark.usefixtures("native")


def packed(n, n_tokens, channels, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(n, n_tokens, 3 * channels, generator=generator)).bfloat16()


# Tokens around the 16 lanes and the 6 rows of a tile; head dimensions of 1 to 8 vectors.
@pytest.mark.parametrize("n_tokens", [1, 2, 5, 6, 7, 15, 16, 17, 31, 64, 65, 100, 257])
@pytest.mark.parametrize(("channels", "num_heads"), [(16, 1), (96, 2), (64, 1), (128, 1), (240, 3)])
@pytest.mark.parametrize("order", ["legacy", "new"])
def test_it_keeps_the_error_budget(n_tokens, channels, num_heads, order):
    qkv = packed(2, n_tokens, channels)
    assert_operator_within_budget(
        lambda x: spatial_attention(x, num_heads, order=order, backend="native"),
        lambda x: spatial_attention(x, num_heads, order=order, backend="reference"),
        (qkv,),
        dtype=torch.bfloat16,
    )


@pytest.mark.parametrize("spread", [0.0, 30.0])
def test_it_keeps_the_error_budget_where_all_scores_are_equal_or_one_dominates(spread):
    qkv = packed(2, 33, 64, spread=spread)
    actual = spatial_attention(qkv, 2, backend="native")
    expected = spatial_attention(qkv.double(), 2, backend="reference")
    torch.testing.assert_close(actual.double(), expected, rtol=2**-7, atol=2**-7 * spread)


def test_scores_far_beyond_the_exponents_of_float32_are_no_nan():
    qkv = packed(1, 20, 64, spread=5e4)
    actual = spatial_attention(qkv, 1, backend="native")
    torch.testing.assert_close(
        actual.double(), spatial_attention(qkv.double(), 1, backend="reference"), rtol=2**-7, atol=0
    )


def test_scores_of_infinity_make_nan_in_their_item_only():
    qkv = packed(2, 20, 32)
    qkv[1, 3, 0] = float("inf")
    out = spatial_attention(qkv, 1, backend="native")
    assert out[0].isfinite().all()
    assert out[1, 3].isnan().all()


def test_tokens_of_any_strides_are_read_where_they_are_or_copied():
    qkv = packed(2, 20, 32)
    expected = spatial_attention(qkv, 1, backend="native")
    wide = torch.zeros(2, 20, 200, dtype=torch.bfloat16)
    for first in (0, 1):
        view = wide[:, :, first : first + 96]
        view.copy_(qkv)
        assert torch.equal(spatial_attention(view, 1, backend="native"), expected)
    assert torch.equal(
        spatial_attention(qkv.transpose(1, 2).contiguous().transpose(1, 2), 1, backend="native"), expected
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_item_has_the_same_bits_alone_and_in_any_batch(dtype):
    qkv = packed(6, 40, 64).to(dtype)
    together = spatial_attention(qkv, 2, backend="native")
    for item in range(6):
        assert torch.equal(spatial_attention(qkv[item : item + 1], 2, backend="native")[0], together[item])


def test_nothing_to_attend_to_gives_an_empty_result():
    assert spatial_attention(packed(0, 4, 32), 1, backend="native").shape == (0, 4, 32)
    assert spatial_attention(packed(2, 0, 32), 1, backend="native").shape == (2, 0, 32)


def test_the_gradient_is_the_reference_s():
    qkv = packed(2, 9, 32).requires_grad_()
    upstream = packed(2, 9, 32, seed=1)[:, :, :32]
    (actual,) = torch.autograd.grad(spatial_attention(qkv, 2, backend="native"), qkv, upstream)
    leaf = qkv.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(spatial_attention(leaf, 2, backend="reference"), leaf, upstream.double())
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=0.02 * expected.abs().max().item())


def test_auto_takes_it_forward_and_leaves_gradients_to_others(pair_dots):
    qkv = packed(1, 16, 32)
    with FlopCounterMode(display=False) as counter:
        spatial_attention(qkv, 1)
    assert torch.ops.msf_native.spatial_attention_fwd in counter.get_flop_counts()["Global"]
    with FlopCounterMode(display=False) as counter:
        spatial_attention(qkv.requires_grad_(), 1)
    assert torch.ops.msf_native.spatial_attention_fwd not in counter.get_flop_counts()["Global"]


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float32, 24), (torch.float16, 40), (torch.bfloat16, 40)])
def test_other_dtypes_and_head_dimensions_take_the_plain_loops(dtype, channels):
    for n_tokens in (1, 3, 33, 70):
        qkv = packed(2, n_tokens, channels).to(dtype)
        assert_operator_within_budget(
            lambda x: spatial_attention(x, 1, backend="native"),
            lambda x: spatial_attention(x, 1, backend="reference"),
            (qkv,),
            dtype=dtype,
        )


def test_what_it_does_not_take_is_refused_with_the_reason():
    with pytest.raises(BackendUnavailableError, match="float64 is left to the reference"):
        spatial_attention(torch.ones(1, 2, 48).double(), 1, backend="native")
    assert explain("spatial_attention", torch.ones(1, 2, 48, device="meta"), 1)["native"] == [
        "has no kernel for tensors on meta"
    ]
    assert backends("cuda")["spatial_attention"]["native"] == ["has no kernels for tensors on cuda"]
    assert backends("cpu")["spatial_attention"]["native"] == []
