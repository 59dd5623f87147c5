"""The form of a network that predictions run on, kept while the network stays as it is."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msf.network.inference.form import InferenceForm, build_form
from msf.network.inference.structure import reason_against
from msf.network.unet import UNet
from msf.network.velocity import PlainVelocity, Velocity
from msf_kernels.backend import forced_backend

_log = logging.getLogger(__name__)
_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # integers of a floating dtype's size


class KeptForm:
    """Keeps the inference form of a network, and makes it anew when the network has changed.

    Every change is seen: of the structure, because a network that its configuration would not build has no inference
    form, and of the numbers, because all of them are compared, bit by bit, with a copy. So no way of changing a tensor
    passes unseen, not those either that PyTorch does not count: `.data`, NumPy's views, tensors of inference mode.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._made: tuple[str, dict[str, Tensor], InferenceForm] | None = None
        self._told: str | None = None

    def of(self, network: nn.Module) -> Velocity:
        """Return the inference form of a network; one that has none as it is, with the reason in the log, once.

        Args:
            network: Evaluated in evaluation mode, with dropout off. A module of another class than `UNet` is
                somebody's own network, and no reason to say anything.
        """
        if not isinstance(network, UNet):
            return PlainVelocity(network)
        reason = reason_against(network)
        if reason is None:
            return self._form(network)
        self._made = None
        if reason != self._told:
            self._told = reason
            _log.warning("predictions run on the network itself, not on its faster inference form: %s", reason)
        return PlainVelocity(network)

    def refresh(self) -> None:
        """Forget the form; the next prediction makes it anew."""
        self._made = None
        self._told = None

    def _form(self, network: UNet) -> InferenceForm:
        tensors = {name: tensor.detach() for name, tensor in network.named_parameters(remove_duplicate=False)}
        backend = forced_backend()
        if self._made is None or self._made[0] != backend or not _are_same(self._made[1], tensors):
            self._made = None  # its memory is free before the next one is made
            kept = {name: tensor.clone() for name, tensor in tensors.items()}
            self._made = backend, kept, build_form(network)
        return self._made[2]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made when it is needed; packed weights can be neither copied nor pickled."""
        return {"_made": None, "_told": None}


def _are_same(kept: dict[str, Tensor], now: dict[str, Tensor]) -> bool:
    """Return whether all tensors have the same bits, dtypes and devices."""
    if kept.keys() != now.keys():
        return False
    pairs = [(kept[name], tensor) for name, tensor in now.items()]
    if any(a.shape != b.shape or a.dtype != b.dtype or a.device != b.device for a, b in pairs):
        return False
    pairs = [_in_one_order(a, b) for a, b in pairs]
    if pairs[0][0].device.type == "cpu":
        return all(np.array_equal(_bits(a).numpy(), _bits(b).numpy()) for a, b in pairs)
    # Two kernels and one answer to wait for, instead of one of each per tensor.
    return torch.equal(*(torch.cat([_bits(tensor) for tensor in side]) for side in zip(*pairs, strict=True)))


def _in_one_order(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors of one shape with their elements in one order in memory, without a copy where they are."""
    if a.stride() == b.stride() and a.ndim == 4 and a.is_contiguous(memory_format=torch.channels_last):
        return a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return a, b


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(_WHOLE[tensor.element_size()])
