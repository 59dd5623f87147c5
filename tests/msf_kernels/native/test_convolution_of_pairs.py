"""The native convolution in bfloat16: exact where nothing is rounded, its error elsewhere, and bits."""

import pytest
import torch

from msf_kernels.conv3x3 import convolve_transformed, transform_weight
from msf_kernels.conv3x3._forms import Form
from msf_kernels.testing import poison_empty
from tests.msf_kernels.native.test_convolution import KINDS, SHAPES, channels_last, options_of, plain, seeded, weight_of

pytestmark = pytest.mark.usefixtures("pair_dots")

BF16 = torch.bfloat16
# Enough channels for tiles; their number is odd, and rows are around the 14 of a product and the 28 of a block.
WIDE = [(1, 33, 4, 4, 33), (2, 33, 7, 2, 40), (3, 33, 6, 10, 32), (29, 33, 8, 4, 64)]
# The rounding of a plain sum's weights, and of its result, to 8 bits: 2^-9 each, at most.
ROUNDING = 2**-9


def transformed(kind, weight, height, width):
    return transform_weight(weight, height, width, dtype=BF16, **options_of(kind))


def whole_numbers(*shape, seed, scale=1):
    """-scale, 0 or scale."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return scale * torch.randint(-1, 2, shape, generator=generator).to(BF16)


@pytest.mark.parametrize("shape", [*((n, min(c, 25), h, w, k) for n, c, h, w, k in SHAPES), *WIDE], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_are_convolved_exactly(kind, shape):
    """With taps of 4 every transformed weight is a whole number, and no sum needs more than 8 bits."""
    n, channels, height, width, n_out = shape
    x = channels_last(whole_numbers(n, channels, height, width, seed=1))
    weight = whole_numbers(*weight_of(kind, n_out, channels).shape, seed=2, scale=4)
    bias = whole_numbers(n_out, seed=3, scale=4)
    oracle = plain(kind, x.double(), weight.double(), bias.double())
    residual = whole_numbers(*oracle.shape, seed=4, scale=4)
    assert (oracle + residual.double()).abs().max() <= 1024  # multiples of 4 of 8 bits
    with poison_empty(native=True):
        actual = convolve_transformed(x, transformed(kind, weight, height, width), bias, residual=residual)
    assert actual.dtype == BF16
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(actual.double(), oracle + residual.double())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [32, 128, 384])
def test_the_error_is_that_of_the_roundings(kind, channels):
    x = channels_last(torch.nn.functional.silu(seeded(2, channels, 16, 16)).to(BF16))
    weight, bias = weight_of(kind, 64, channels), seeded(64).to(BF16)
    prepared = transformed(kind, weight, 16, 16)
    oracle = plain(kind, x.double(), weight.double(), bias.double())
    error = convolve_transformed(x, prepared, bias).double() - oracle
    relative = error.square().mean().sqrt() / oracle.square().mean().sqrt()
    # Of the weight and of the result; with tiles of two outputs of the inputs too, and all of them 1.67 times as much.
    expected = {Form.DIRECT: 2**0.5, Form.TWO: 9**0.5, Form.DOUBLING_TWO: 9**0.5}[prepared.form] * ROUNDING / 3**0.5
    assert relative < 1.25 * expected


@pytest.mark.parametrize("kind", KINDS)
def test_bits_depend_neither_on_the_batch_nor_on_the_threads(kind):
    n, channels, height, width = 64, 50, 9, 7
    x, bias = channels_last(seeded(n, channels, height, width).to(BF16)), seeded(40).to(BF16)
    prepared = transformed(kind, weight_of(kind, 40, channels), height, width)
    whole = convolve_transformed(x, prepared, bias)
    threads = torch.get_num_threads()
    try:
        for size in (1, 2, 3, 7, 16, 64):
            torch.set_num_threads(1 + size % 2)
            assert torch.equal(convolve_transformed(x[:size], prepared, bias), whole[:size]), size
            assert torch.equal(convolve_transformed(x[-size:], prepared, bias), whole[-size:]), size
    finally:
        torch.set_num_threads(threads)


def test_maps_at_odd_places_are_read_right():
    """A pixel's pairs need not begin at an even place, nor be two by two."""
    wide = channels_last(seeded(2, 35, 6, 5).to(BF16))
    for kind in KINDS:
        for first, channels in ((0, 32), (1, 32), (2, 33), (1, 34)):
            x = wide[:, first : first + channels]
            prepared = transformed(kind, weight_of(kind, 9, channels), 6, 5)
            assert torch.equal(
                convolve_transformed(x, prepared, None), convolve_transformed(x.clone(), prepared, None)
            ), (kind, first, channels)


def test_every_form_is_right_on_maps_that_would_choose_another():
    for kind, forms in (("plain", ((1, 1), (8, 8))), ("doubled", ((1, 1), (8, 8)))):
        weight = whole_numbers(*weight_of(kind, 35, 33).shape, seed=5, scale=4)
        for of_height, of_width in forms:
            prepared = transformed(kind, weight, of_height, of_width)
            for height, width in ((1, 1), (2, 3), (6, 5), (12, 17)):
                x = whole_numbers(2, 33, height, width, seed=6)
                oracle = plain(kind, x.double(), weight.double(), None)
                assert torch.equal(convolve_transformed(x, prepared, None).double(), oracle)


def test_dtypes_that_do_not_fit_are_refused():
    weight = transform_weight(torch.zeros(32, 33, 3, 3), 4, 4, dtype=BF16)
    x = torch.zeros(1, 33, 4, 4, dtype=BF16)
    with pytest.raises(TypeError, match=r"x must have dtype torch.bfloat16; got torch.float32"):
        convolve_transformed(x.float(), weight, None)
    with pytest.raises(TypeError, match=r"bias must have dtype torch.bfloat16; got torch.float32"):
        convolve_transformed(x, weight, torch.zeros(32))
    fwd = torch.ops.msf_native.convolution_fwd
    for values, bias, message in (
        (weight.values[:, :, :, :1], None, "weight must be what convolution_weight made for form 1"),
        (weight.values.float(), None, "weight must have the dtype of x"),
        (weight.values[..., 0].contiguous(), None, "for bfloat16 in pairs of input channels"),
        (weight.values, torch.zeros(32), "bias must have the dtype of x"),
    ):
        with pytest.raises(RuntimeError, match=message):
            fwd(x, values.contiguous(), bias, None, 32, Form.TWO, 1)
