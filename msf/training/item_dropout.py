"""Dropout whose masks belong to the items: the same in any batch, part of a batch, process and order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from msf_kernels import philox_normal
from msf_kernels.shapes import FeatureMap, SampleIndex

# Streams below belong to the path's noise.
_FIRST_STREAM = 16


class ItemDropout(nn.Dropout):
    """Dropout in the place of `nn.Dropout`, with the same probability and scale.

    Element e of item i is kept where the standard normal number e of (seed, stream, i) is below the quantile 1 - p.

    Args:
        p: Probability that an element becomes zero, in (0, 1).
        stream: Tells the layers of a network apart.
    """

    def __init__(self, p: float, stream: int) -> None:
        """Know no items yet."""
        super().__init__(p)
        self.stream = stream
        self.items: SampleIndex | None = None
        self.seed = 0
        self._quantile = float(torch.special.ndtri(torch.tensor(1 - p, dtype=torch.float64)))

    def forward(self, input: FeatureMap) -> FeatureMap:
        """Return the activations with some of them zero, in training; [N, C, H, W]."""
        h = input
        if not self.training:
            return h
        if self.items is None or len(self.items) != len(h):
            raise RuntimeError("dropout by item needs the items of the batch: evaluate the network inside `of_items`")
        is_kept = philox_normal(self.items, h.shape[1:], self.seed, stream=self.stream) < self._quantile
        return torch.where(is_kept, h / (1 - self.p), 0)


def drop_by_item(network: nn.Module) -> list[ItemDropout]:
    """Put `ItemDropout` in the place of every `nn.Dropout` that is at work, and return them."""
    replaced: list[ItemDropout] = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p > 0:
                layer = ItemDropout(child.p, _FIRST_STREAM + len(replaced)).train(child.training)
                setattr(parent, name, layer)
                replaced.append(layer)
    return replaced


@contextmanager
def of_items(layers: list[ItemDropout], items: SampleIndex, seed: int) -> Iterator[None]:
    """Let the layers draw for these items until the block ends.

    Args:
        layers: What `drop_by_item` returned.
        items: Identity of each item of the batch, in its order; int64 [N].
        seed: Of the run.
    """
    for layer in layers:
        layer.items, layer.seed = items, seed
    try:
        yield
    finally:
        for layer in layers:
            layer.items = None
