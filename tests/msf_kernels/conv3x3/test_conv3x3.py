"""The 3x3 convolution: definition, kernels, formats, refusals."""

import pytest
import torch
from torch.nn import functional

from msf_kernels import conv3x3, explain, pack_weight


def seeded(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(x, weight, bias, *, stride=1, upsample=False, skip=None, residual=None):
    """The convolution step by step."""
    h = x if skip is None else torch.cat([x, skip], 1)
    if upsample:
        h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    out = functional.conv2d(h, weight, bias, stride=stride, padding=1)
    return out if residual is None else out + residual


@pytest.mark.parametrize("kind", ["plain", "stride", "upsample", "packed upsample"])
def test_the_definition_is_the_steps_one_by_one(kind):
    x, skip, weight, bias = seeded(2, 5, 7, 6), seeded(2, 3, 7, 6, seed=1), seeded(4, 8, 3, 3, seed=2), seeded(4)
    options = {"stride": 2 if kind == "stride" else 1, "upsample": "upsample" in kind, "skip": skip}
    options["residual"] = torch.randn_like(plain(x, weight, bias, **options))
    given = pack_weight(weight, upsample=True) if kind == "packed upsample" else weight
    for backend in ("reference", "aten"):
        got = conv3x3(x, given, bias, **options, backend=backend)
        torch.testing.assert_close(got, plain(x, weight, bias, **options), rtol=0, atol=1e-12)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_packed_weight_is_a_view_for_the_kernels():
    from msf_kernels.conv3x3._formula import packed

    weight = seeded(6, 5, 3, 3, dtype=torch.float32)
    for upsample in (False, True):
        form = pack_weight(weight, upsample=upsample)
        assert packed(form, upsample).data_ptr() == form.data_ptr()
        assert packed(weight, upsample).equal(packed(form, upsample))


@pytest.mark.interpreter
@pytest.mark.parametrize("size", [4, 8])
def test_an_item_has_the_same_bits_in_any_batch(size):
    x, weight = seeded(9, 8, size, size, dtype=torch.float32), seeded(16, 8, 3, 3, dtype=torch.float32)
    together = conv3x3(x, weight, None, backend="triton")
    # A tile holds four of the smaller items. NumPy's products, on which the interpreter computes, round by the row in a
    # tile, so an item keeps its place in a tile here.
    for items in ([4], [8, 5, 2], [4, 1, 6, 7, 0]):
        assert torch.equal(conv3x3(x[items], weight, None, backend="triton"), together[items])


@pytest.mark.interpreter
def test_offsets_beyond_two_to_the_31_are_computed_in_64_bits():
    # A map of 2^31 elements per item cannot be held here: the type of its offsets is what a launch depends on.
    import triton.language as tl

    from msf_kernels._triton.offsets import offset_type

    assert offset_type(torch.empty(1, 64, 8193, 4096, device="meta").to(memory_format=torch.channels_last)) == tl.int64
    assert offset_type(torch.empty(70_000, 64, 256, 256, device="meta")) == tl.int32


def test_the_reference_and_the_library_are_differentiable():
    x, weight, bias = seeded(1, 2, 3, 4), seeded(4, 2, 3, 3, seed=1), seeded(4, seed=2)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    for backend in ("reference", "aten"):
        assert torch.autograd.gradcheck(lambda x, w, b, name=backend: conv3x3(x, w, b, backend=name), inputs)


@pytest.mark.interpreter
def test_the_kernels_refuse_what_they_were_not_made_for():
    x, weight = torch.zeros(1, 8, 4, 4), torch.zeros(24, 8, 3, 3)
    for inputs, reason in (
        ((x.double(), weight.double()), "float64 is left to the other backends"),
        ((x.bfloat16(), weight.bfloat16()), "interpreter is wrong in bfloat16"),
        ((x, weight.requires_grad_()), "has no gradient: use the other backends in training"),
    ):
        with pytest.raises(RuntimeError, match=reason):
            conv3x3(*inputs, None, backend="triton")
        assert reason in str(explain("conv3x3", *inputs, None)["triton"])
    assert conv3x3(x, weight, None).requires_grad
    with torch.no_grad():
        assert explain("conv3x3", x, weight, None)["triton"] == []


X, W, B = torch.zeros(2, 4, 6, 6), torch.zeros(8, 4, 3, 3), torch.zeros(8)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        (([1.0], W, B), {}, TypeError, r"x must be a tensor \[N, C, H, W\]; got list"),
        ((X[0], W, B), {}, ValueError, r"x must be \[N, C, H, W\]; got shape"),
        ((X, W[:, :3], B), {}, ValueError, r"weight must be \[K, C, 3, 3\] = \[8, 4, 3, 3\]; got shape \[8, 3, 3, 3\]"),
        ((X, W.half(), B), {}, TypeError, "weight must have the dtype of x, torch.float32; got torch.float16"),
        ((X, W[:0], B[:0]), {}, ValueError, "with K and C >= 1"),
        ((X, torch.zeros(4, 8, 4, 2, 2), B), {}, ValueError, r"weight must be \[K, C, 3, 3\]; got shape"),
        ((X, torch.zeros(4, 8, 3, 2, 2), B), {"upsample": True}, ValueError, r"weight must be \[4, K, C, 2, 2\]"),
        ((X, W, B[:3]), {}, ValueError, r"bias must be \[K\] = \[8\]; got shape \[3\]"),
        ((X, W, B), {"stride": 3}, ValueError, "stride must be >= 1 and < 3; got 3"),
        ((X, W, B), {"stride": 2, "upsample": True}, ValueError, "stride must be 1 with upsample; got 2"),
        ((X, W, B), {"upsample": 1}, TypeError, "upsample must be True or False; got int"),
        ((X, W, B), {"skip": X[:1]}, ValueError, r"skip must be \[N, C_skip, H, W\] of x"),
        ((X, W, B), {"residual": X}, ValueError, r"residual must be \[N, K, OH, OW\] = \[2, 8, 6, 6\]"),
        ((X, W, B), {"backend": "cudnn"}, ValueError, "backend must be one of auto, triton, native, aten, reference"),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        conv3x3(*args, **kwargs)


def test_a_weight_that_is_not_3x3_cannot_be_packed():
    with pytest.raises(ValueError, match=r"weight must be \[K, C, 3, 3\] = \[8, 4, 3, 3\]; got shape \[8, 4, 1, 1\]"):
        pack_weight(W[..., :1, :1])
