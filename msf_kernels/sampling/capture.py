"""A micro-batch as one CUDA graph: noise, every step of the trajectory and the readout, without host work between.

A graph replays fixed kernels on fixed addresses. So arguments are copied into static buffers, and outputs are static
tensors that the next replay overwrites. A graph belongs to shapes and dtypes of a micro-batch, not to the number of
inputs or samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from msf_kernels.sampling.memory import is_out_of_memory

Readout = Tensor | Mapping[str, Tensor]
Trajectory = Callable[[Any, Tensor], Readout]
Evaluate = Callable[..., dict[str, Tensor]]

_N_WARM_UP = 3  # kernels are chosen and workspaces allocated in the first calls

_log = logging.getLogger(__name__)


class GraphMaker(Protocol):
    """Turns a function of static tensors into something that repeats it in place."""

    def __call__(self, function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        """Return `replay` and the static outputs that it overwrites."""


def make_cuda_graph(function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
    """Warm `function` up on a side stream, then record it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_N_WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph.replay, outputs


class _StaticCall:
    """One graph with its buffers."""

    def __init__(self, function: Evaluate, arguments: Sequence[Tensor], make_graph: GraphMaker) -> None:
        self._buffers = [argument.clone() for argument in arguments]
        self._replay, self._outputs = make_graph(lambda: function(*self._buffers))

    def __call__(self, arguments: Sequence[Tensor]) -> dict[str, Tensor]:
        for buffer, argument in zip(self._buffers, arguments, strict=True):
            buffer.copy_(argument, non_blocking=True)
        self._replay()
        return self._outputs


class GraphedFunction:
    """A function of tensors that is recorded at its first call for each signature, and replayed afterwards.

    What it returns is valid until the next call. Where recording fails, the function is called as it is from then on,
    and the reason is logged once; out-of-memory errors are passed on instead, since a smaller micro-batch may fit.
    """

    def __init__(self, function: Evaluate, make_graph: GraphMaker = make_cuda_graph) -> None:
        """Wrap a function of tensors that returns tensors by name."""
        self._function = function
        self._make_graph = make_graph
        self._calls: dict[Hashable, _StaticCall] = {}
        self._can_capture = True

    @property
    def is_captured(self) -> bool:
        """Whether calls replay a graph."""
        return bool(self._calls)

    def release(self) -> None:
        """Forget all graphs; the next call records again."""
        self._calls.clear()

    def __call__(self, *arguments: Tensor) -> dict[str, Tensor]:
        """Return the function's outputs."""
        signature = tuple((a.shape, a.dtype, a.device) for a in arguments)
        call = self._calls.get(signature)
        if call is None and self._can_capture:
            call = self._capture(signature, arguments)
        return self._function(*arguments) if call is None else call(arguments)

    def _capture(self, signature: Hashable, arguments: Sequence[Tensor]) -> _StaticCall | None:
        try:
            call = _StaticCall(self._function, arguments, self._make_graph)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self._can_capture = False
            _log.warning(
                "the trajectory cannot be captured as a CUDA graph and runs without: %s: %s",
                type(error).__name__,
                error,
            )
            return None
        self._calls[signature] = call
        return call


class CapturedTrajectory:
    """A trajectory whose CUDA graphs outlive a call of `draw`.

    `draw` records a graph for a plain trajectory in every call. Wrapped, the graphs stay with this object, and another
    number of inputs or samples is served without a new recording; another seed, noise shape or micro-batch is not.
    The graph reads the network's weights where they are: change them in place, or make a new object.

    Args:
        trajectory: What `draw` takes as its trajectory.
        make_graph: How a micro-batch is recorded, whatever the device; default: as a CUDA graph, on CUDA only.
    """

    def __init__(self, trajectory: Trajectory, make_graph: GraphMaker | None = None) -> None:
        """Keep the trajectory; nothing is recorded yet."""
        self.trajectory = trajectory
        self._make_graph = make_graph
        self._graphs: dict[Hashable, GraphedFunction] = {}

    def bind(self, settings: Hashable, evaluate: Evaluate, device: torch.device) -> Evaluate:
        """Return `evaluate` as a function that replays graphs on `device`, or as it is where there are none.

        What is returned for equal settings is what was made for the first of them, with its graphs.
        """
        if self._make_graph is None and device.type != "cuda":
            return evaluate
        if settings not in self._graphs:
            self._graphs[settings] = GraphedFunction(evaluate, self._make_graph or make_cuda_graph)
        return self._graphs[settings]

    def release(self) -> None:
        """Forget all graphs and give their memory back to the device."""
        for graphed in self._graphs.values():
            graphed.release()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
