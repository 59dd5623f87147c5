"""Makers of graphs for machines without a GPU."""

import weakref

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeGraphs:
    """Record by remembering the function; replay by calling it and overwriting the static outputs, as a graph does.

    What a recorded function reads and does not make must still be there at every replay, as for a graph of addresses.
    """

    def __init__(self, *errors):
        self.n_recorded = 0
        self.errors = list(errors)
        self.outputs = []

    def __call__(self, function):
        self.n_recorded += 1
        if self.errors:
            raise self.errors.pop(0)
        outputs = function()
        self.outputs.append([weakref.ref(value) for value in outputs.values()])

        def replay():
            for name, value in function().items():
                outputs[name].copy_(value)

        return replay, outputs


class AddressGraphs:
    """Graphs of addresses: they keep nothing alive themselves, and replay only what is left of what they read."""

    def __init__(self):
        self.reads = []

    def __call__(self, function):
        with Watch() as watch:
            outputs = function()
        self.reads.append(watch.reads)

        def replay():
            freed = [shape for shape, memory in watch.reads if memory.expired()]
            assert not freed, f"a graph reads freed tensors: {freed}"

        return replay, outputs


class Watch(TorchDispatchMode):
    """Notes what operators read, with weak references."""

    def __init__(self):
        super().__init__()
        self.reads, self._made = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.reads += [one for one in _memories((args, kwargs)) if one[1] not in self._made]
        known = [memory for _, memory in self.reads]
        self._made += [memory for _, memory in _memories(result) if memory not in known]
        return result


def _memories(values):
    tensors = [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
    # Packed weights of a CPU's library have no storage that could be looked at.
    return [(x.shape, StorageWeakRef(x.untyped_storage())) for x in tensors if x.layout == torch.strided]
