"""The form of a network that predictions run on, kept while the network stays as it is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from msf.config import PrecisionName
from msf.network.inference.form import InferenceForm, build_form
from msf.network.inference.precision import DTYPES, dtype_for, precision_of
from msf.network.inference.structure import examine
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

    Args:
        before_change: Called before a form is dropped, so that whoever else holds it lets go.
    """

    def __init__(self, before_change: Callable[[], None] | None = None) -> None:
        """Start with nothing."""
        self._before_change = before_change
        self._made: tuple[str, torch.dtype, _Copy, InferenceForm] | None = None
        self._told: str | None = None

    def of(self, network: nn.Module, precision: PrecisionName = "auto", n_draws: int | None = None) -> Velocity:
        """Return the inference form of a network; one that has none as it is, with the reason in the log, once.

        Args:
            network: Evaluated in evaluation mode, with dropout off. A module of another class than `UNet` is
                somebody's own network, and no reason to say anything.
            precision: Arithmetic of the form, as in `msf.config.ClassifySettings`.
            n_draws: Draws per picture, which `auto` goes by too; None: many.

        Raises:
            ValueError: A precision other than the network's own, where it has no inference form; or as for
                `msf.precision.auto_precision`.
        """
        if not isinstance(network, UNet):
            return _plain(network, precision, f"a {type(network).__name__}")
        found = examine(network)
        if not isinstance(found, str) and torch.is_autocast_enabled(found[0].device.type):
            found = "autocast is on, which changes what the network computes"
        if not isinstance(found, str):
            own, width = found[0], network.config.base_channels
            return self._form(network, found, dtype_for(precision, width, own.dtype, own.device, n_draws))
        self._drop()
        if found != self._told:
            self._told = found
            _log.warning("predictions run on the network itself, not on its faster inference form: %s", found)
        return _plain(network, precision, found)

    def refresh(self) -> None:
        """Forget the form; the next prediction makes it anew."""
        self._drop()
        self._told = None

    def _form(self, network: UNet, tensors: list[Tensor], dtype: torch.dtype) -> InferenceForm:
        backend = forced_backend()
        if self._made is None or self._made[:2] != (backend, dtype) or not self._made[2].are(tensors):
            self._drop()  # its memory is free before the next one is made
            self._made = backend, dtype, _Copy(tensors), build_form(network, dtype=dtype)
        return self._made[3]

    def _drop(self) -> None:
        if self._before_change is not None:
            self._before_change()
        self._made = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made when it is needed; packed weights can be neither copied nor pickled."""
        return {"_made": None, "_told": None, "_before_change": self._before_change}


def _plain(network: nn.Module, precision: PrecisionName, why: str) -> PlainVelocity:
    """Return the network itself, which computes in the dtype of its weights and in no other."""
    own = next((tensor.dtype for tensor in network.parameters() if tensor.is_floating_point()), torch.float32)
    if precision != "auto" and DTYPES[precision] != own:
        raise ValueError(
            f"precision must be auto or {precision_of(own)} for a network without an inference form ({why}); got "
            f"{precision!r}: move the network with flow.to(dtype=...)"
        )
    return PlainVelocity(network, own)


class _Copy:
    """The bits of tensors: in the host's memory where the tensors are, which compares fastest, else in one tensor."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._form = _form_of(tensors)
        self._is_here = tensors[0].device.type == "cpu"
        self._bytes = [bytearray(_bits(tensor).numpy().data) for tensor in tensors] if self._is_here else []
        self._flat = None if self._is_here else _flat(tensors)

    def are(self, tensors: list[Tensor]) -> bool:
        """Return whether tensors have the same shapes, dtypes, devices and bits."""
        if _form_of(tensors) != self._form:
            return False
        if self._flat is not None:  # two kernels and one answer to wait for, instead of one of each per tensor
            return torch.equal(self._flat, _flat(tensors))
        return all(mine == _bits(now).numpy().data for mine, now in zip(self._bytes, tensors, strict=True))


def _form_of(tensors: list[Tensor]) -> tuple[object, ...]:
    """Return what tensors of one dtype and device have beside their bits."""
    return tensors[0].dtype, tensors[0].device, [tensor.shape for tensor in tensors]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([_bits(tensor).view(-1) for tensor in tensors])


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(_WHOLE[tensor.element_size()])
