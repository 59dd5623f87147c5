"""The trajectories of one flow, kept from call to call with their CUDA graphs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from msf.flow.solver import FlowSolver
from msf.network.velocity import PlainVelocity
from msf_kernels.sampling import CapturedTrajectory, GraphCache
from msf_kernels.sampling.capture import Trajectory

MAX_TRAJECTORIES = 8


class KeptTrajectories:
    """Keeps what a flow does with a micro-batch, by what it depends on, while its network stays as it is.

    A graph bakes in the network's tensors, the time grid, the method and the read-out; pictures, labels and seeds are
    its arguments. So a flow that classifies again and again with equal settings records once. A network that is
    evaluated as it is may do something else in the next call: it keeps no graph beyond one.

    Args:
        graphs: Where all graphs of the flow are.
    """

    def __init__(self, graphs: GraphCache | None = None) -> None:
        """Start with nothing."""
        self._graphs = graphs or GraphCache()
        self._network: object = None
        self._kept: OrderedDict[Hashable, CapturedTrajectory] = OrderedDict()

    def of(
        self, solver: FlowSolver, key: Hashable, make: Callable[[], Trajectory], *, is_fixed: bool = True
    ) -> CapturedTrajectory:
        """Return the trajectory for a solver and a key, made now unless one of before serves.

        Args:
            solver: What the trajectory follows.
            key: What else decides its results.
            make: Makes it.
            is_fixed: Whether all of it beside the network is as it was whenever the key is equal.
        """
        network = solver.network.origin
        if isinstance(network, PlainVelocity) or not is_fixed:
            self.release()
            return CapturedTrajectory(make(), graphs=self._graphs)
        if network is not self._network:
            self.release()
            self._network = network
        key = (key, solver.identity)
        kept = self._kept.pop(key, None) or CapturedTrajectory(make(), graphs=self._graphs)
        self._kept[key] = kept
        if len(self._kept) > MAX_TRAJECTORIES:
            self._kept.popitem(last=False)  # its graphs give way to newer ones
        return kept

    def release(self) -> None:
        """Forget all of them, with the network that they hold."""
        self._kept.clear()
        self._network = None
        self._graphs.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made when it is needed."""
        return {"_graphs": self._graphs, "_network": None, "_kept": OrderedDict()}
