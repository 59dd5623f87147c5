"""How recovered semantic maps are compared with the classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from msf.config import ReadoutName
from msf_kernels.shapes import SemanticBatch


@dataclass(frozen=True)
class Readout:
    """How a recovered semantic map is compared with the classes.

    Args:
        name: What is compared; see `MedSymmFlow.classify`.
        distance: From [B, K, H, W] to the distance to each class and each class's share of the pixels, both
            [B, n_classes].
        weights: From [B, K, H, W] to class weights [B, n_classes], linear, where a map is a posterior mean that
            determines them (`LabelCode.weights`); else None.
        is_decoding: Whether the comparison decodes, which costs more than the network.
    """

    name: ReadoutName
    distance: Callable[[SemanticBatch], tuple[Tensor, Tensor]]
    weights: Callable[[SemanticBatch], Tensor] | None = None
    is_decoding: bool = False


def per_pixel(readout: Readout) -> Readout:
    """Return the same comparison for every pixel on its own, a map of one pixel; results are [B, n_classes, H, W]."""
    weights = readout.weights
    return dataclasses.replace(
        readout,
        distance=_OfPixels(readout.distance),
        weights=None if weights is None else _OfPixels(weights),
    )


@dataclass(frozen=True)
class _OfPixels:
    """A comparison, pixel by pixel; two of the same comparison are equal."""

    compare: Callable[[SemanticBatch], Any]

    def __call__(self, semantic: SemanticBatch) -> Any:
        n, n_channels, height, width = semantic.shape
        values = self.compare(semantic.permute(0, 2, 3, 1).reshape(-1, n_channels, 1, 1))

        def mapped(each: Tensor) -> Tensor:
            return each.reshape(n, height, width, -1).permute(0, 3, 1, 2)

        return mapped(values) if isinstance(values, Tensor) else tuple(map(mapped, values))
