"""How recovered semantic maps are compared with the classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
