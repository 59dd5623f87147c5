"""A micro-batch as one CUDA graph: noise, every step of the trajectory and the readout, without host work between.

A graph replays fixed kernels on fixed addresses. So arguments are copied into static buffers, the seed among them, and
outputs are static tensors that the next replay overwrites. What else a graph reads it keeps alive. It belongs to shapes
and dtypes of a micro-batch, not to the number of inputs or samples, nor to the seed.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msf_kernels.backend import forced_backend
from msf_kernels.sampling.memory import is_out_of_memory

Readout = Tensor | Mapping[str, Tensor]
Trajectory = Callable[[Any, Tensor], Readout]
Evaluate = Callable[..., dict[str, Tensor]]

# Recording takes about the host's time of one evaluation and runs nothing on the device; a replay saves what the host
# takes longer than the device. The first use is evaluated as it is, which also makes everything that is made lazily;
# recorded at the second, a graph has paid for itself after one or two replays where the host is the slower one, and
# costs one evaluation's launches in all where it never is.
USES_BEFORE_RECORDING = 1
MAX_ATTEMPTS = 2
MAX_GRAPHS = 8

_log = logging.getLogger(__name__)


class GraphMaker(Protocol):
    """Turns a function of static tensors into something that repeats it in place."""

    def __call__(self, function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """Return `replay` and the static outputs that it overwrites."""


class CudaGraphs:
    """Records CUDA graphs that share one memory pool: they must not be replayed at the same time."""

    def __init__(self) -> None:
        """Ask for no device yet."""
        self._pool: Any = None

    def __call__(self, function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """Record `function`, which has run before; nothing runs on the device."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Another thread's allocation, which would end a capture of the default kind, is no business of this one.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = function()
        return graph.replay, outputs


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the storages that operators read and did not make themselves."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[Any, Any] = {}
        # Weak references, not addresses: while one lives, no other storage is taken for the one it refers to.
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            memory = _memory_of(tensor)
            if memory._cdata not in self._made:
                self.kept[memory._cdata] = memory
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            memory = _memory_of(tensor)
            if memory._cdata not in self.kept and isinstance(memory, torch.UntypedStorage):
                self._made[memory._cdata] = StorageWeakRef(memory)  # type: ignore[no-untyped-call]
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def _memory_of(tensor: Tensor) -> Any:
    """Return the storage, which outlives a parameter whose `.data` is replaced; of what has none, the tensor."""
    return tensor.untyped_storage() if tensor.layout == torch.strided else tensor


class _StaticCall:
    """One graph with its buffers and all that it reads."""

    def __init__(self, function: Evaluate, arguments: Sequence[Tensor], make_graph: GraphMaker) -> None:
        self._buffers = [argument.clone() for argument in arguments]
        reads = _Reads()

        def recorded() -> dict[str, Tensor]:
            with reads:
                return function(*self._buffers)

        self._replay, self._outputs = make_graph(recorded)
        self._reads = list(reads.kept.values())

    def __call__(self, arguments: Sequence[Tensor]) -> dict[str, Tensor]:
        for buffer, argument in zip(self._buffers, arguments, strict=True):
            buffer.copy_(argument, non_blocking=True)
        self._replay()
        return self._outputs


class _Entry:
    """What is known of one signature."""

    def __init__(self) -> None:
        self.n_uses = 0
        self.n_failures = 0
        self.graph: _StaticCall | None = None

    @property
    def is_due(self) -> bool:
        return self.graph is None and self.n_uses >= USES_BEFORE_RECORDING and self.n_failures < MAX_ATTEMPTS


class GraphCache:
    """CUDA graphs of one owner: few, the least recently used goes first, in one memory pool.

    One draw uses them at a time; another one that comes meanwhile, from another thread or from inside, runs without.

    Args:
        make_graph: How a micro-batch is recorded, whatever the device; default: as a CUDA graph, on CUDA only.
        max_graphs: Signatures that are remembered, >= 1, with or without a graph.
    """

    def __init__(self, make_graph: GraphMaker | None = None, max_graphs: int = MAX_GRAPHS) -> None:
        """Record nothing yet."""
        self._serves_every_device = make_graph is not None
        self.make_graph = make_graph or CudaGraphs()
        self._max_graphs = max_graphs
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def serves(self, device: torch.device) -> bool:
        """Return whether micro-batches on a device are recorded."""
        return self._serves_every_device or device.type == "cuda"

    @contextmanager
    def in_use(self) -> Iterator[bool]:
        """Yield whether the graphs are the caller's until the block ends."""
        is_ours = self._lock.acquire(blocking=False)
        try:
            yield is_ours
        finally:
            if is_ours:
                self._lock.release()

    def entry(self, key: Hashable) -> _Entry:
        """Return what is known of a signature, which is now the most recently used one."""
        found = self._entries.pop(key, None) or _Entry()
        self._entries[key] = found
        while len(self._entries) > self._max_graphs:
            self._entries.popitem(last=False)
        return found

    def release(self) -> None:
        """Forget all graphs and give their memory back to the device; what failed stays known."""
        for entry in self._entries.values():
            entry.graph = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def forget(self) -> None:
        """Forget all graphs, uses and failures; the device keeps the memory for what comes next."""
        self._entries.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to a device and a process."""
        return {
            "make_graph": self.make_graph if self._serves_every_device else None,
            "max_graphs": self._max_graphs,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with nothing recorded."""
        self.__init__(**state)  # type: ignore[misc]


class GraphedFunction:
    """A function of tensors that is recorded at its second call for a signature, and replayed from then on.

    What a replay returns is valid until the next call. Where recording fails, for lack of memory too, the function is
    called as it is; it is tried once more, and every failure is logged.

    Args:
        function: Takes tensors and returns tensors by name.
        cache: Where its graphs are.
        key: What the function is, among those of the cache; equal ones share their graphs.
    """

    def __init__(self, function: Evaluate, cache: GraphCache, key: Hashable = None) -> None:
        """Record nothing yet."""
        self._function = function
        self._cache = cache
        self._key = key
        self.is_captured = False
        """Whether the last call replayed a graph."""

    def __call__(self, *arguments: Tensor) -> dict[str, Tensor]:
        """Return the function's outputs."""
        signature = tuple((a.shape, a.dtype, a.device) for a in arguments)
        entry = self._cache.entry((self._key, _surroundings(), signature))
        if entry.is_due:
            self._record(entry, arguments)
        entry.n_uses += 1
        self.is_captured = entry.graph is not None
        return self._function(*arguments) if entry.graph is None else entry.graph(arguments)

    def _record(self, entry: _Entry, arguments: Sequence[Tensor]) -> None:
        try:
            entry.graph = _StaticCall(self._function, arguments, self._cache.make_graph)
        except Exception as error:
            entry.n_failures += 1
            if is_out_of_memory(error):  # the function itself has fitted, and its micro-batch decides bits
                self._cache.release()
            is_last = entry.n_failures == MAX_ATTEMPTS
            _log.warning(
                "the trajectory cannot be captured as a CUDA graph and runs without%s: %s: %s",
                "" if is_last else ", for now",
                type(error).__name__,
                error,
            )


def _surroundings() -> Hashable:
    """Return what a recording depends on beside its function and arguments, and would not notice later."""
    return forced_backend(), torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cuda")


class CapturedTrajectory:
    """A trajectory whose CUDA graphs outlive a call of `draw`.

    `draw` forgets the graphs of a plain trajectory at its end. Wrapped, they stay with this object, and another number
    of inputs or samples, or another seed, is served without a new recording; another noise shape or micro-batch is not.
    A graph reads the network's weights where they were when it was recorded: change them in place, or make a new
    object.

    Args:
        trajectory: What `draw` takes as its trajectory.
        make_graph: How a micro-batch is recorded, whatever the device; default: as a CUDA graph, on CUDA only.
        graphs: Where graphs are kept, beside those of others; default: a cache of its own.
    """

    def __init__(
        self, trajectory: Trajectory, make_graph: GraphMaker | None = None, *, graphs: GraphCache | None = None
    ) -> None:
        """Keep the trajectory; nothing is recorded yet."""
        self.trajectory = trajectory
        self._graphs = GraphCache(make_graph) if graphs is None else graphs
        self._identity = object()  # not this object itself, which would then be part of a cycle

    def serves(self, device: torch.device) -> bool:
        """Return whether micro-batches on a device may be recorded."""
        return self._graphs.serves(device)

    @contextmanager
    def bound(self, settings: Hashable, evaluate: Evaluate, device: torch.device) -> Iterator[Evaluate]:
        """Yield `evaluate` as a function that replays graphs on `device`, or as it is where there are none.

        Equal settings share their graphs.
        """
        if not self.serves(device):
            yield evaluate
            return
        with self._graphs.in_use() as is_ours:
            yield GraphedFunction(evaluate, self._graphs, (self._identity, settings)) if is_ours else evaluate

    def release(self) -> None:
        """Forget all graphs, those of others in the same cache too, and give their memory back to the device."""
        self._graphs.release()
