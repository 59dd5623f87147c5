"""Pictures on their way to the network: range, size, channels and flips, a whole batch at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from msf.config import ValueRange
from msf.data.arrays import NumpyArray, as_tensor, listed
from msf_kernels.checks import FLOATING
from msf_kernels.shapes import ImageBatch

HALF_RANGE = 127.5  # levels 0..255 become value / HALF_RANGE - 1
_HALF_RANGES = {torch.uint8: HALF_RANGE, torch.uint16: 32767.5}
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
N_FLIPS = 4  # as it is, left-right, upside down, both
_RANGE_SLACK = 1e-5  # rounding of a caller's own normalisation
_BOUNDS: dict[ValueRange, tuple[float, float]] = {"signed": (-1.0, 1.0), "unit": (0.0, 1.0)}


class ValueRangeWarning(UserWarning):
    """Pictures are read as values in [-1, 1] and look like values in [0, 1]."""


def prepare_images(
    images: Tensor | NumpyArray,
    size: int,
    channels: int,
    *,
    allow_grey: bool = False,
    value_range: ValueRange | None = None,
) -> ImageBatch:
    """Return pictures as the network takes them.

    Levels become `level / 127.5 - 1` (`level / 32767.5 - 1` for uint16); another size is resized (bilinear,
    antialiased), and what is not square becomes so; one channel is repeated to make three; three become luminance only
    where that is allowed.

    Args:
        images: Tensor or NumPy array: uint8 or uint16 [N, H, W] or [N, H, W, C], or floating point [N, C, H, W]; C = 1
            or 3.
        size: Height and width of the result, >= 1.
        channels: Channels of the result, 1 or 3.
        allow_grey: Permit three channels to become one, which loses the colour.
        value_range: What floating-point values mean: `signed`, black is -1 and white 1; or `unit`, black is 0 and
            white 1, as in the pictures that `generate` returns. None: `signed`, with a warning where that looks wrong.

    Returns:
        float32 [N, channels, size, size] in [-1, 1], on the device of `images`. Differentiable.

    Raises:
        TypeError: Neither tensor nor array, or neither uint8, uint16 nor floating point.
        ValueError: Wrong shape; values outside the range, NaN or infinite (the first such pictures are named); levels
            with a `value_range`; three channels where one is wanted; one picture where a batch is wanted.

    Warns:
        ValueRangeWarning: No `value_range`, and nothing in the whole batch is below 0.

    Numerics:
        float32 throughout; a picture's result does not depend on the batch.
    """
    if size < 1 or channels not in (1, 3):
        raise ValueError(f"size must be >= 1 and channels 1 or 3; got {size} and {channels}")
    settled = settle_value_range(images, channels, value_range, allow_grey=allow_grey)
    images = as_tensor("images", images)
    if settled is None:
        planes = (images[..., None] if images.ndim == 3 else images).permute(0, 3, 1, 2)
        images = planes.float().div_(_HALF_RANGES[images.dtype]).sub_(1)
    else:
        images = images.float() * 2 - 1 if settled == "unit" else images.float()
    n_given = images.shape[1]
    if n_given == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    elif n_given == 3 and channels == 1:
        weights = torch.tensor(LUMINANCE, device=images.device)
        images = torch.einsum("nchw,c->nhw", images, weights)[:, None]
    return resize_images(images, size).clamp(-1, 1).contiguous()


def resize_images(images: ImageBatch, size: int) -> ImageBatch:
    """Return the pictures at another size: bilinear, antialiased where they shrink; the same pictures at their own.

    Args:
        images: float [N, C, H, W].
        size: Height and width of the result, >= 1.

    Raises:
        ValueError: A size below 1.
    """
    if size < 1:
        raise ValueError(f"size must be >= 1; got {size}")
    if tuple(images.shape[2:]) == (size, size):
        return images
    if not len(images):
        return images.new_empty(0, images.shape[1], size, size)
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def draw_flips(n: int, generator: torch.Generator) -> Tensor:
    """Return whether each of n pictures is mirrored left-right and upside down, with probability 1/2 each.

    Args:
        n: Pictures.
        generator: Source of the choices.

    Returns:
        bool [n, 2], on the generator's device.
    """
    return torch.stack([torch.rand(n, generator=generator, device=generator.device) < 0.5 for _ in range(2)], 1)


def apply_flips(images: ImageBatch, flips: Tensor) -> ImageBatch:
    """Return the pictures, mirrored as `draw_flips` chose.

    Args:
        images: [N, C, H, W], any dtype.
        flips: Left-right and upside down; bool [N, 2], on any device.

    Returns:
        Like `images`.
    """
    for choice, axis in ((flips[:, 0], 3), (flips[:, 1], 2)):
        images = torch.where(choice.to(images.device)[:, None, None, None], images.flip(axis), images)
    return images


def settle_value_range(
    images: Tensor | NumpyArray, channels: int, value_range: ValueRange | None, *, allow_grey: bool = False
) -> ValueRange | None:
    """Check a whole batch, and return what its values mean, for `prepare_images` to be told with every part of it.

    Args:
        images: As for `prepare_images`.
        channels: Likewise.
        value_range: What the caller says.
        allow_grey: Likewise.

    Returns:
        `signed` or `unit` for floating point, None for levels, whose range is that of their dtype.

    Raises:
        TypeError: See `prepare_images`.
        ValueError: See `prepare_images`.

    Warns:
        ValueRangeWarning: See `prepare_images`.
    """
    if value_range is not None and value_range not in get_args(ValueRange):
        raise ValueError(f"value_range must be one of {', '.join(get_args(ValueRange))}; got {value_range!r}")
    images = as_tensor("images", images)
    if _channels_of(images, channels) == 3 and channels == 1 and not allow_grey:
        raise ValueError(
            "images have 3 channels and the network takes 1; give grey pictures, or allow_grey=True for luminance"
        )
    if images.dtype in _HALF_RANGES:
        if value_range is not None:
            raise ValueError(
                f"value_range must be None for {images.dtype}, whose range is its own; got {value_range!r}"
            )
        return None
    settled: ValueRange = value_range or "signed"
    if not images.numel():
        return settled
    values = images.detach()
    low, high = (float(value) for value in values.aminmax())  # both NaN if any value is
    lowest, highest = _BOUNDS[settled]
    if not (low >= lowest - _RANGE_SLACK and high <= highest + _RANGE_SLACK):
        is_inside = (values >= lowest - _RANGE_SLACK) & (values <= highest + _RANGE_SLACK)
        rows = (~is_inside).flatten(1).any(dim=1).nonzero().flatten().tolist()
        raise ValueError(
            f"floating-point images must be finite and in [{lowest:g}, {highest:g}]; got values from {low} to "
            f"{high}, outside in {listed('picture', rows)} (value_range {settled!r})"
        )
    if value_range is None and 0 <= low < 1:  # a white picture is white in both ranges
        warnings.warn(
            "images hold nothing below 0, and are read as values in [-1, 1], where 0 is grey: say value_range='unit' "
            "if black is 0, or value_range='signed' if this is right",
            ValueRangeWarning,
            stacklevel=3,
        )
    return settled


def _channels_of(images: Tensor, channels: int) -> int:
    """Return the channels of pictures, whose dtype and shape are checked on the way."""
    name = str(images.dtype).removeprefix("torch.")
    if images.dtype in FLOATING:
        _check_shape(images, images.shape[1:2], images.shape[2:], "floating-point images must be [N, C, H, W]")
        return images.shape[1]
    if images.dtype not in _HALF_RANGES:
        raise TypeError(f"images must be uint8, uint16, or floating point in [-1, 1]; got {images.dtype}")
    wanted = f"{name} images must be [N, H, W] or [N, H, W, C]"
    if images.ndim == 3:
        height, width, last = images.shape
        if last in (1, 3, 4) and (width != last or last == channels == 3):
            raise ValueError(
                f"{wanted}; got {[height, width, last]}, which looks like one picture with its channels: give "
                f"[1, {height}, {width}, {last}]"
            )
        images = images[..., None]
    _check_shape(images, images.shape[3:], images.shape[1:3], wanted)
    return images.shape[3]


def _check_shape(images: Tensor, channels: Sequence[int], pixels: Sequence[int], wanted: str) -> None:
    if images.ndim != 4 or min(pixels) < 1 or tuple(channels) not in ((1,), (3,)):
        raise ValueError(f"{wanted} with H, W >= 1 and C = 1 or 3; got {list(images.shape)}")
