"""Random shifts, rotations and changes of brightness, drawn first and applied to any part of a batch afterwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from msf.config import DataConfig
from msf_kernels.shapes import ImageBatch

_SHIFT_X, _SHIFT_Y, _ANGLE, _BRIGHTNESS = range(4)


def draw_changes(n: int, settings: DataConfig, generator: torch.Generator) -> Tensor | None:
    """Return how each of n pictures is changed; None, and nothing is drawn, where the settings change nothing.

    Args:
        n: Pictures.
        settings: `shift`, `rotation` and `brightness` are read.
        generator: Source of randomness.

    Returns:
        float32 [n, 4]: shift to the right and down in units of half the side, angle in radians, brightness in units of
        half the range. Each is uniform between the negative and the positive limit.
    """
    limits = (2 * settings.shift, 2 * settings.shift, math.radians(settings.rotation), 2 * settings.brightness)
    if not any(limits):
        return None
    return (torch.rand(n, len(limits), generator=generator) * 2 - 1) * torch.tensor(limits)


def apply_changes(images: ImageBatch, changes: Tensor) -> ImageBatch:
    """Return pictures rotated about their centre, then shifted, then made brighter or darker.

    Values between pixels are bilinear; beyond an edge the picture is mirrored. Brightness is added to every level, and
    what leaves the range is clipped.

    Args:
        images: float [N, C, H, W] in [-1, 1].
        changes: What `draw_changes` gave; float [N, 4].

    Returns:
        Like `images`, in [-1, 1]. Pictures that neither move nor turn keep their levels but for the brightness.
    """
    changes = changes.to(images.device)
    moved = _moved(images, changes, "bilinear")
    return (moved + changes[:, _BRIGHTNESS, None, None, None]).clamp(-1, 1)


def change_label_maps(maps: Tensor, changes: Tensor) -> Tensor:
    """Return label maps, moved and turned as `apply_changes` does it with their pictures.

    Args:
        maps: Classes; int64 [N, H, W], below 2^24.
        changes: What `draw_changes` gave; float [N, 4].

    Returns:
        Like `maps`; every pixel has the class of the pixel that is nearest to where it comes from.
    """
    return _moved(maps[:, None].float(), changes.to(maps.device), "nearest")[:, 0].to(maps.dtype)


def _moved(images: Tensor, changes: Tensor, between: str) -> Tensor:
    """Rotate pictures, then shift them; values between pixels are `bilinear` or `nearest`."""
    if changes[:, [_SHIFT_X, _SHIFT_Y, _ANGLE]].any():
        cos, sin = changes[:, _ANGLE].cos(), changes[:, _ANGLE].sin()
        x, y = changes[:, _SHIFT_X], changes[:, _SHIFT_Y]
        # Where each pixel of the result comes from: back by the shift, then back by the rotation.
        back = torch.stack(
            [torch.stack([cos, sin, -(cos * x + sin * y)], 1), torch.stack([-sin, cos, sin * x - cos * y], 1)], 1
        )
        grid = functional.affine_grid(back, list(images.shape), align_corners=False)
        images = functional.grid_sample(images, grid, between, "reflection", align_corners=False)
    return images
