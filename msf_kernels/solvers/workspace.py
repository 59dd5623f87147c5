"""Buffers that solves of one shape share."""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """States of a solve, kept for the next one: many solves of one shape then allocate only what they return.

    Holds at most one buffer per place: a solve of another shape, dtype, device or memory format replaces them. Not for
    two solves at once: one per thread, and none shared with a velocity field that itself integrates.

    Source: own.
    """

    def __init__(self) -> None:
        """Start without buffers."""
        self._buffers: dict[str, Tensor] = {}

    def get(self, place: str, like: Tensor) -> Tensor:
        """Return the buffer of a place, uninitialised or with what the last solve left in it.

        Args:
            place: Name of its use; another name is other memory.
            like: Tensor whose shape, strides, dtype and device are wanted.
        """
        held = self._buffers.get(place)
        if held is None or not _is_like(held, like):
            held = self._buffers[place] = torch.empty_like(like, requires_grad=False)
        return held

    def clear(self) -> None:
        """Let go of all buffers."""
        self._buffers.clear()

    @property
    def n_bytes(self) -> int:
        """Memory that the buffers take."""
        return sum(buffer.untyped_storage().nbytes() for buffer in self._buffers.values())


def _is_like(held: Tensor, like: Tensor) -> bool:
    return (
        held.shape == like.shape
        and held.dtype == like.dtype
        and held.device == like.device
        and held.stride() == like.stride()
        # A tensor made in inference mode cannot be written to outside of it.
        and held.is_inference() == torch.is_inference_mode_enabled()
    )
