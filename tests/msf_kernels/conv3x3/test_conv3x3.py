"""The 3x3 convolution and the norm's factor and offset: definition, kernels, formats, refusals."""

import pytest
import torch
from torch.nn import functional

from msf_kernels import conv3x3, explain, norm_affine, pack_weight
from msf_kernels.partial_moments import map_moments
from msf_kernels.testing import poison_empty

BACKENDS = ["reference", "aten", "triton"]


def seeded(*shape, seed=0, dtype=torch.float64, mean=0.0):
    return mean + torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(x, weight, bias, *, stride=1, upsample=False, skip=None, norm_scale=None, norm_shift=None, residual=None):
    """The convolution step by step."""
    h = x if skip is None else torch.cat([x, skip], 1)
    if norm_scale is not None:
        h = functional.silu(h * norm_scale[:, :, None, None] + norm_shift[:, :, None, None])
    if upsample:
        h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    out = functional.conv2d(h, weight, bias, stride=stride, padding=1)
    return out if residual is None else out + residual


@pytest.mark.parametrize("kind", ["plain", "stride", "upsample", "packed upsample"])
def test_the_definition_is_the_steps_one_by_one(kind):
    x, skip, weight, bias = seeded(2, 5, 7, 6), seeded(2, 3, 7, 6, seed=1), seeded(4, 8, 3, 3, seed=2), seeded(4)
    options = {"stride": 2 if kind == "stride" else 1, "upsample": "upsample" in kind, "skip": skip}
    options |= {"norm_scale": seeded(2, 8, seed=3), "norm_shift": seeded(1, 8, seed=4)}
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("upsample", [False, True])
def test_the_moments_are_those_of_the_rounded_result(need_backend, backend, upsample):
    need_backend("conv3x3", backend)
    x, weight = seeded(3, 8, 9, 10, dtype=torch.float32).half(), seeded(24, 8, 3, 3, dtype=torch.float32).half()
    with poison_empty():
        out, moments = conv3x3(x, weight, None, upsample=upsample, bundle=4, backend=backend)
    expected = map_moments(out, 4, upsample=upsample)
    assert moments.dtype == torch.float32
    torch.testing.assert_close(moments, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_factor_and_offset_apply_the_group_norm_of_both_inputs(need_backend, backend, mean):
    need_backend("norm_affine", backend)
    h, skip = seeded(2, 24, 8, 8, dtype=torch.float32, mean=mean), seeded(2, 12, 8, 8, seed=1, dtype=torch.float32)
    weight, bias = seeded(36, seed=2, dtype=torch.float32), seeded(36, seed=3, dtype=torch.float32)
    scale, shift = seeded(2, 36, seed=4, dtype=torch.float32), seeded(1, 36, seed=5, dtype=torch.float32)
    # Groups of 12 channels: the second straddles no seam, but bundles of 4 would allow it.
    norm_scale, norm_shift = norm_affine(
        map_moments(h, 4), 3, weight, bias, skip_moments=map_moments(skip, 4), scale=scale, shift=shift, backend=backend
    )
    both = torch.cat([h, skip], 1)
    normed = functional.group_norm(both.double(), 3, weight.double(), bias.double())
    expected = normed * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    got = both * norm_scale[:, :, None, None] + norm_shift[:, :, None, None]
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5 * (1 + mean))


def test_a_residual_branch_needs_no_pass_over_the_map_for_its_norms():
    x, first, second = seeded(2, 8, 8, 8), seeded(8, 8, 3, 3, seed=1), seeded(8, 8, 3, 3, seed=2)
    bias, weight = seeded(8, seed=3), seeded(8, seed=4)
    h, moments = conv3x3(x, first, bias, bundle=2)
    norm_scale, norm_shift = norm_affine(moments, 4, weight, bias)
    got = conv3x3(h, second, bias, norm_scale=norm_scale, norm_shift=norm_shift, residual=x)
    h = functional.conv2d(x, first, bias, padding=1)
    h = functional.silu(functional.group_norm(h, 4, weight, bias))
    torch.testing.assert_close(got, x + functional.conv2d(h, second, bias, padding=1), rtol=0, atol=1e-12)


@pytest.mark.interpreter
@pytest.mark.parametrize("size", [4, 8])
def test_an_item_has_the_same_bits_in_any_batch(size):
    x, weight = seeded(9, 8, size, size, dtype=torch.float32), seeded(16, 8, 3, 3, dtype=torch.float32)
    rows = {name: seeded(9, 8, seed=i, dtype=torch.float32) for i, name in enumerate(("norm_scale", "norm_shift"), 1)}

    def run(items):
        chosen = {name: values[items] for name, values in rows.items()}
        return conv3x3(x[items], weight, None, bundle=4, backend="triton", **chosen)

    together = run(torch.arange(9))
    # A tile holds four of the smaller items. NumPy's products, on which the interpreter computes, round by the row in a
    # tile, so an item keeps its place in a tile here.
    for items in ([4], [8, 5, 2], [4, 1, 6, 7, 0]):
        for got, expected in zip(run(torch.tensor(items)), together, strict=True):
            assert torch.equal(got, expected[items])


@pytest.mark.interpreter
def test_offsets_beyond_two_to_the_31_are_computed_in_64_bits():
    # A map of 2^31 elements per item cannot be held here: the type of its offsets is what a launch depends on.
    import triton.language as tl

    from msf_kernels._triton.offsets import offset_type

    assert offset_type(torch.empty(1, 64, 8193, 4096, device="meta").to(memory_format=torch.channels_last)) == tl.int64
    assert offset_type(torch.empty(70_000, 64, 256, 256, device="meta")) == tl.int32


def test_the_reference_and_the_library_are_differentiable():
    x, weight, bias = seeded(1, 2, 3, 4), seeded(4, 2, 3, 3, seed=1), seeded(4, seed=2)
    scale, shift = seeded(1, 2, seed=3), seeded(1, 2, seed=4)
    inputs = [tensor.requires_grad_() for tensor in (x, weight, bias, scale, shift)]
    for backend in ("reference", "aten"):
        assert torch.autograd.gradcheck(
            lambda x, w, b, s, h, name=backend: conv3x3(x, w, b, norm_scale=s, norm_shift=h, backend=name), inputs
        )


@pytest.mark.interpreter
def test_the_kernels_refuse_what_they_were_not_made_for():
    x, weight = torch.zeros(1, 8, 4, 4), torch.zeros(24, 8, 3, 3)
    for inputs, options, reason in (
        ((x.double(), weight.double()), {}, "float64 is left to the other backends"),
        ((x.bfloat16(), weight.bfloat16()), {}, "interpreter is wrong in bfloat16"),
        ((x, weight), {"bundle": 3}, "takes bundles that are powers of two up to 32; got 3"),
        ((x, weight.requires_grad_()), {}, "has no gradient: use the other backends in training"),
    ):
        with pytest.raises(RuntimeError, match=reason):
            conv3x3(*inputs, None, backend="triton", **options)
        assert reason in str(explain("conv3x3", *inputs, None, **options)["triton"])
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
        ((X, W, B), {"norm_scale": X[:, :, 0, 0]}, ValueError, "must come together; got no norm_shift"),
        ((X, W, B), {"norm_scale": B, "norm_shift": B}, ValueError, r"norm_scale must be \[N or 1, C\]; got shape"),
        ((X, W, B), {"bundle": 3}, ValueError, "bundle must divide the output channels, 8; got 3"),
        ((X, W, B), {"backend": "cudnn"}, ValueError, "backend must be one of auto, triton, native, aten, reference"),
    ],
)
def test_bad_input_is_refused_with_argument_wish_and_fact(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        conv3x3(*args, **kwargs)


M = torch.zeros(2, 1, 4, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((M.half(), 2, B, B), {}, TypeError, "moments must have dtype torch.float32 or torch.float64"),
        ((M[..., :2], 2, B, B), {}, ValueError, r"moments must be \[N, chunks, B, 3\]"),
        ((M, 3, B, B), {}, ValueError, "num_groups must divide the bundles of all moments, 4; got 3"),
        ((M, 2, B[:6], B[:6]), {}, ValueError, r"weight must be \[C\], C a multiple of the bundles"),
        ((M, 2, B, B[:4]), {}, ValueError, r"bias must be \[C\] = \[8\]; got shape \[4\]"),
        ((M, 2, B, B), {"skip_moments": M[:1]}, ValueError, r"skip_moments must be \[N, chunks, B_skip, 3\]"),
        ((M, 2, B, B), {"scale": B}, ValueError, r"scale must be \[N or 1, C\]; got shape"),
        ((M, 2, B, B), {"eps": 0.0}, ValueError, "eps must be finite and > 0; got 0.0"),
    ],
)
def test_bad_moments_are_refused_with_argument_wish_and_fact(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        norm_affine(*args, **kwargs)


def test_a_weight_that_is_not_3x3_cannot_be_packed():
    with pytest.raises(ValueError, match=r"weight must be \[K, C, 3, 3\] = \[8, 4, 3, 3\]; got shape \[8, 4, 1, 1\]"):
        pack_weight(W[..., :1, :1])
