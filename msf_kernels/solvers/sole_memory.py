"""Memory that only a solve can reach, which it may then write again."""

from __future__ import annotations

import sys
import weakref

import torch
from torch import Tensor

from msf_kernels._derivatives import is_transforming

# Smaller states stay in the near cache wherever they are; to look who holds them costs more.
_LEAST_BYTES = 1 << 17
_use_count = getattr(torch._C, "_storage_Use_Count", None)


class SoleMemory:
    """The memory of a new tensor that its maker shows to nobody, only aliases of it.

    Tensors, views, NumPy arrays, DLPack capsules, saved tensors and pending work of any thread hold the storage, each
    with a count. So once the aliases are let go and the counts are what they were at first, nobody can read what the
    memory holds. What an alias carries itself (its identity, weak references to it, attributes) goes with it.
    """

    def __init__(self, tensor: Tensor) -> None:
        """Take down the counts while nobody else has seen the tensor."""
        self.tensor = tensor
        self._storage = tensor.untyped_storage()
        self._counts = self._count()

    def is_free(self) -> bool:
        """Return whether nobody has come to hold the memory since."""
        return self._count() == self._counts

    def _count(self) -> tuple[int, int, int, bool]:
        # The storage's own object can be held and weakly referenced as well, and other processes may map its memory.
        storage = self._storage
        return (
            sys.getrefcount(storage),
            weakref.getweakrefcount(storage),
            _use_count(storage._cdata),  # type: ignore[misc]
            storage.is_shared(),
        )


def may_be_written_again(z_start: Tensor) -> bool:
    """Return whether states like `z_start` are such that counts tell who holds them, and whether it is worth it.

    Elsewhere than on a CPU work may still be queued that reads what nobody holds any more; autograd, transforms and
    tracing see more than the counts.
    """
    return (
        _use_count is not None
        and not torch.compiler.is_compiling()
        and type(z_start) is Tensor
        and z_start.device.type == "cpu"
        and z_start.numel() * z_start.element_size() >= _LEAST_BYTES
        and not torch.is_grad_enabled()
        and not is_transforming()
        and torch._C._get_tracing_state() is None
        and not torch._C._len_torch_dispatch_stack()
    )
