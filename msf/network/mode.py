"""Training and evaluation mode of a network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block, whatever mode training left the network in."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)
