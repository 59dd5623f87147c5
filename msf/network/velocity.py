"""What every form of a velocity network is to its callers, and the plain network in that shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from msf_kernels.shapes import JointState, TimeBatch

Time = float | TimeBatch
Times = Time | tuple[Time, Time]
"""One time for both streams, or one per stream as (t_image, t_semantic)."""


class Velocity(ABC):
    """A velocity field v(z, t) on joint states, of which a caller may ask for some channels.

    Whether these are the network itself or its inference form is nothing that a caller needs to know.

    Attributes:
        dtype: Dtype of the arithmetic.
        is_batch_invariant: Whether the bits of an item are promised to be the same in every batch.
        micro_batch: Items that it wants at once, since they are to be filled up to that; None: no matter.
    """

    dtype: torch.dtype
    is_batch_invariant: bool = False
    micro_batch: int | None = None

    @property
    def convolution(self) -> str:
        """What convolves, for people: names of backends, the most frequent first."""
        return "torch"

    @property
    def origin(self) -> Velocity:
        """The velocity that it is made of, for one that only combines evaluations of another; else itself."""
        return self

    @abstractmethod
    def __call__(self, z: JointState, t: Times, *, channels: slice | None = None) -> JointState:
        """Return the velocity at the state z and the time t.

        Args:
            z: [N, C + K, H, W], float.
            t: A number or a tensor [], and [N] where one time per item is supported; of a network with one time per
                stream also a pair of those.
            channels: Which channels of the velocity are wanted; default: all.

        Returns:
            [N, C + K, H, W], or the wanted channels of it, in the dtype that the network computes in.
        """


class PlainVelocity(Velocity):
    """A network as it is, `network(z, t) -> v`: every channel is computed, and those not wanted are dropped.

    Args:
        network: Takes a number, [], [N], or [1|N, 2] for a pair of times, as `msf.network.unet.UNet` does.
        dtype: Dtype that it computes in.
    """

    def __init__(self, network: Callable[[Tensor, Time], Tensor], dtype: torch.dtype = torch.float32) -> None:
        """Keep the network."""
        self.network = network
        self.dtype = dtype

    def __call__(self, z: JointState, t: Times, *, channels: slice | None = None) -> JointState:
        """Return the network's velocity; see `Velocity`."""
        velocity = self.network(z, _pairs(t, z) if isinstance(t, tuple) else t)
        return velocity if channels is None else velocity[:, channels]


def as_velocity(network: Velocity | Callable[[Tensor, Time], Tensor]) -> Velocity:
    """Return a velocity as it is, and any other network `(z, t) -> v` in its shape."""
    return network if isinstance(network, Velocity) else PlainVelocity(network)


def _pairs(times: tuple[Time, Time], z: Tensor) -> TimeBatch:
    """Return both times as [1|N, 2] on the state's device, never rounded below float32."""
    rows = [_as_rows(t, z) for t in times]
    n_rows = max(len(row) for row in rows)
    return torch.stack([row.expand(n_rows) for row in rows], dim=1)


def _as_rows(t: Time, z: Tensor) -> Tensor:
    """Return the time as [1] or [N]; a number is filled in on the device, never copied from the host."""
    dtype = torch.promote_types(z.dtype, torch.float32)
    if isinstance(t, Tensor):
        return t.reshape(-1).to(z.device, dtype)
    return z.new_full((1,), t, dtype=dtype)
