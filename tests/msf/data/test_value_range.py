"""What the numbers of a picture mean is said, or told from what they can be; never guessed without a word."""

import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from msf.data import ValueRangeWarning, as_tensor, prepare_images, settle_value_range


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape):
    return torch.rand(*shape, generator=rng())


LEVELS = torch.randint(0, 256, (4, 8, 8, 3), generator=rng(), dtype=torch.uint8)


def test_both_ranges_and_levels_of_the_same_pictures_agree():
    from_unit = LEVELS.permute(0, 3, 1, 2) / 255
    wanted = prepare_images(LEVELS, 8, 3)
    assert_close(prepare_images(from_unit, 8, 3, value_range="unit"), wanted, rtol=0, atol=1e-6)
    assert_close(prepare_images(from_unit * 2 - 1, 8, 3, value_range="signed"), wanted, rtol=0, atol=1e-6)
    assert_close(prepare_images(from_unit * 2 - 1, 8, 3), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [
        unit(3, 3, 8, 8),
        torch.zeros(1, 1, 4, 4),
        torch.full((2, 1, 4, 4), 0.5),
        torch.tensor([0.0, 1.0]).repeat(8).reshape(1, 1, 4, 4),
        unit(3, 3, 8, 8).half(),
        unit(3, 3, 8, 8).double().numpy(),
    ],
    ids=["noise", "zeros", "grey", "black and white", "half precision", "array"],
)
def test_a_batch_with_nothing_below_zero_is_a_warning_unless_the_range_is_said(images):
    with pytest.warns(ValueRangeWarning, match="nothing below 0.*value_range='unit'.*value_range='signed'"):
        prepare_images(images, 8, 3)
    for value_range in ("unit", "signed"):
        prepare_images(images, 8, 3, value_range=value_range)  # a warning would be an error here
        assert settle_value_range(images, 3, value_range) == value_range


@pytest.mark.parametrize(
    "images",
    [
        unit(3, 1, 8, 8) * 2 - 1,
        torch.ones(2, 1, 4, 4),  # white, in either range
        -torch.ones(2, 1, 4, 4),
        torch.zeros(0, 1, 4, 4),
        torch.tensor([0.5, 0.5, 0.5, -1e-3]).reshape(1, 1, 2, 2),
        LEVELS,
        torch.full((1, 4, 4, 1), 200, dtype=torch.uint8),
    ],
    ids=["signed", "white", "black", "none", "one value below", "levels", "bright levels"],
)
def test_what_is_plain_is_no_warning(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_images(images, 8, 3)


def test_one_bright_picture_of_a_batch_is_no_warning():
    images = torch.cat([unit(1, 1, 8, 8), -unit(1, 1, 8, 8)])
    assert settle_value_range(images, 3, None) == "signed"


@pytest.mark.parametrize(
    ("images", "value_range", "text"),
    [
        (
            unit(3, 1, 8, 8) * 2 - 1,
            "unit",
            r"must be finite and in \[0, 1\]; got values from -0\.9.* in pictures 0, 1, 2 ",
        ),
        (
            unit(3, 1, 8, 8) * 255,
            None,
            r"must be finite and in \[-1, 1\]; .* in pictures 0, 1, 2 \(value_range 'signed'\)",
        ),
        (torch.tensor([0.5, 1.2])[:, None, None, None].expand(2, 1, 4, 4), "unit", r"in picture 1 "),
        (torch.tensor([0.5, 1.2])[:, None, None, None].expand(2, 1, 4, 4), "signed", r"in picture 1 "),
        (LEVELS, "unit", "value_range must be None for torch.uint8, whose range is its own; got 'unit'"),
        (LEVELS.to(torch.uint16), "signed", "value_range must be None for torch.uint16"),
        (unit(1, 1, 4, 4), "0-1", "value_range must be one of signed, unit; got '0-1'"),
    ],
)
def test_pictures_that_cannot_be_what_was_said_are_refused(images, value_range, text):
    with pytest.raises(ValueError, match=text):
        prepare_images(images, 8, 3, value_range=value_range)
    with pytest.raises(ValueError, match=text):
        settle_value_range(images, 3, value_range)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("value_range", [None, "signed", "unit"])
def test_the_first_pictures_that_are_not_finite_are_named(value, value_range):
    images = unit(9, 3, 8, 8)
    images[4, 1, 2, 3] = images[7, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"must be finite and in .*(nan|inf).*, outside in pictures 4, 7 \("):
        prepare_images(images, 8, 3, value_range=value_range)
    images[:] = value
    with pytest.raises(ValueError, match=r"in pictures 0, 1, 2, 3, \.\.\. "):
        prepare_images(images, 8, 3, value_range=value_range)


# Layouts


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(28, 28, 3), (28, 28, 4), (28, 20, 1), (30, 28, 3)])
def test_one_picture_with_its_channels_is_no_batch_of_grey_ones(dtype, channels, shape):
    with pytest.raises(
        ValueError, match=rf"looks like one picture with its channels: give \[1, {shape[0]}, {shape[1]},"
    ):
        prepare_images(torch.zeros(shape, dtype=dtype), 8, channels)


def test_small_square_grey_pictures_stay_a_batch():
    assert prepare_images(torch.zeros(5, 4, 4, dtype=torch.uint8), 8, 3).shape == (5, 3, 8, 8)
    assert prepare_images(torch.zeros(5, 3, 3, dtype=torch.uint8), 8, 1).shape == (5, 1, 8, 8)
    with pytest.raises(ValueError, match="looks like one picture"):
        prepare_images(torch.zeros(3, 3, 3, dtype=torch.uint8), 8, 3)


# Arrays, and tensors that are none of ours


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array,
        lambda array: array[::-1],
        lambda array: np.asfortranarray(array),
        lambda array: np.broadcast_to(array[:1], array.shape),
        lambda array: array.astype(array.dtype.newbyteorder()),
        lambda array: array[:, ::2],
    ],
    ids=["plain", "negative strides", "Fortran", "read-only", "another byte order", "strided"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
def test_arrays_are_taken_as_tensors_are(change, dtype):
    array = np.random.default_rng(0).integers(0, 200, (4, 8, 6)).astype(dtype)
    array = change(array if array.dtype.kind == "u" else (array / 100 - 1)[:, None])
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    assert torch.equal(prepare_images(array, 8, 3), prepare_images(torch.tensor(native), 8, 3))


def test_a_plain_array_is_not_copied():
    array = np.zeros((2, 8, 8), np.uint8)
    assert as_tensor("images", array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[0.0]], "must be a torch tensor or a NumPy array; got list"),
        (None, "must be a torch tensor or a NumPy array; got NoneType"),
        (np.array([{}]), "must hold numbers; got an array of object"),
        (np.array(["a"]), "must hold numbers; got an array of <U1"),
        (np.zeros(3, "datetime64[s]"), "must hold numbers"),
        (np.zeros(3, np.complex64), "must hold numbers"),
        (np.zeros(3, np.longdouble), "must have a dtype that PyTorch has too; got an array of float128"),
        (np.zeros(3, [("a", "f4")]), "must hold numbers"),
        (torch.zeros(3).to_sparse(), "must be a dense tensor with values"),
        (torch.zeros(3, device="meta"), "must be a dense tensor with values"),
        (torch.zeros(3, dtype=torch.complex64), "must be real"),
    ],
)
def test_what_is_no_plain_tensor_is_refused(values, text):
    with pytest.raises(TypeError, match=f"^latents {text}"):
        as_tensor("latents", values)
    with pytest.raises(TypeError, match=f"^images {text}"):
        prepare_images(values, 8, 3)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bool, torch.int16])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match=f"uint8, uint16, or floating point .*got {dtype}"):
        prepare_images(torch.zeros(2, 1, 4, 4).to(dtype), 8, 3)


def test_pictures_that_require_gradients_get_them():
    images = (unit(2, 3, 8, 8) * 2 - 1).requires_grad_()
    prepare_images(images, 16, 3).square().sum().backward()
    assert images.grad.abs().sum() > 0
