"""Pictures on their way to the network: range, size, channels and flips, a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from msf_kernels.shapes import ImageBatch

HALF_RANGE = 127.5  # levels 0..255 become value / HALF_RANGE - 1
_HALF_RANGES = {torch.uint8: HALF_RANGE, torch.uint16: 32767.5}
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
N_FLIPS = 4  # as it is, left-right, upside down, both
_RANGE_SLACK = 1e-5  # rounding of a caller's own normalisation


def prepare_images(images: Tensor, size: int, channels: int, *, allow_grey: bool = False) -> ImageBatch:
    """Return pictures as the network takes them.

    Levels become `level / 127.5 - 1` (`level / 32767.5 - 1` for uint16); another size is resized (bilinear,
    antialiased), and what is not square becomes so; one channel is repeated to make three; three become luminance only
    where that is allowed.

    Args:
        images: uint8 or uint16 [N, H, W] or [N, H, W, C], or floating point [N, C, H, W] in [-1, 1]; C = 1 or 3.
        size: Height and width of the result, >= 1.
        channels: Channels of the result, 1 or 3.
        allow_grey: Permit three channels to become one, which loses the colour.

    Returns:
        float32 [N, channels, size, size] in [-1, 1], on the device of `images`.

    Raises:
        TypeError: Not a tensor, or neither uint8, uint16 nor floating point.
        ValueError: Wrong shape; values outside [-1, 1], NaN or infinite; three channels where one is wanted.

    Numerics:
        float32 throughout; a picture's result does not depend on the batch.
    """
    if size < 1 or channels not in (1, 3):
        raise ValueError(f"size must be >= 1 and channels 1 or 3; got {size} and {channels}")
    images = _as_float(images)
    n_given = images.shape[1]
    if n_given == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    elif n_given == 3 and channels == 1:
        if not allow_grey:
            raise ValueError(
                "images have 3 channels and the network takes 1; give grey pictures, or allow_grey=True for luminance"
            )
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


def _as_float(images: Tensor) -> Tensor:
    """Return float32 [N, C, H, W] in [-1, 1]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch tensor; got {type(images).__name__}")
    if images.dtype in _HALF_RANGES:
        return _planes(images).float() / _HALF_RANGES[images.dtype] - 1
    if not images.is_floating_point():
        raise TypeError(f"images must be uint8, uint16, or floating point in [-1, 1]; got {images.dtype}")
    _check_shape(images, images.shape[1:2], images.shape[2:], "floating-point images must be [N, C, H, W]")
    if images.numel():
        low, high = (float(value) for value in images.aminmax())
        if not (low >= -1 - _RANGE_SLACK and high <= 1 + _RANGE_SLACK):
            raise ValueError(f"floating-point images must be finite and in [-1, 1]; got values from {low} to {high}")
    return images.float()


def _planes(images: Tensor) -> Tensor:
    """Return levels [N, C, H, W] from [N, H, W] or [N, H, W, C]."""
    if images.ndim == 3:
        images = images[..., None]
    _check_shape(
        images, images.shape[3:], images.shape[1:3], f"{str(images.dtype)[6:]} images must be [N, H, W] or [N, H, W, C]"
    )
    return images.permute(0, 3, 1, 2)


def _check_shape(images: Tensor, channels: Sequence[int], pixels: Sequence[int], wanted: str) -> None:
    if images.ndim != 4 or min(pixels) < 1 or tuple(channels) not in ((1,), (3,)):
        raise ValueError(f"{wanted} with H, W >= 1 and C = 1 or 3; got {list(images.shape)}")
