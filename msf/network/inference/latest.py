"""The inference form that fits the present weights of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from msf.network.inference.velocity import CompiledVelocity, compile_velocity
from msf.network.unet import UNet


class LatestVelocity:
    """Keeps the inference form of a network, and makes it anew when a weight has changed.

    Every kind of change is seen: other tensors, changes in place, and changes through `.data` or of tensors made in
    inference mode, which PyTorch does not count, by the norms of the tensors.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._made: tuple[tuple[object, ...], CompiledVelocity] | None = None

    def of(self, network: nn.Module) -> CompiledVelocity | nn.Module:
        """Return the inference form of a `UNet`; another module as it is."""
        if not isinstance(network, UNet):
            return network
        tensors = [parameter.detach() for parameter in network.parameters()]
        norms = torch.stack(torch._foreach_norm(tensors, 2, torch.float32)).tolist()
        counts = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
        state = (*(tensor.data_ptr() for tensor in tensors), *counts, *norms)
        if self._made is None or self._made[0] != state:
            self._made = state, compile_velocity(network)
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made when it is needed; packed weights can be neither copied nor pickled."""
        return {"_made": None}
