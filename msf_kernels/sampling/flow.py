"""Trajectories of a plain velocity field: start state, all solver steps, readout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from msf_kernels.sampling.capture import Readout
from msf_kernels.sampling.engine import draw
from msf_kernels.sampling.result import SamplingResult
from msf_kernels.sampling.work_items import Inputs
from msf_kernels.solvers import EULER, Tableau, check_time_grid, integrate
from msf_kernels.solvers.tableau import as_tableau
from msf_kernels.solvers.time_grid import TimeGridLike

Start = Callable[[Any, Tensor], Tensor]


def join_channels(inputs: Tensor, noise: Tensor) -> Tensor:
    """Return the joint state [inputs ; noise]: tensors [B, C, ...] and [B, K, ...] joined on axis 1."""
    return torch.cat([inputs, noise], dim=1)


def end_state(state: Tensor) -> Tensor:
    """Return the state as it is."""
    return state


class FlowTrajectory:
    """`readout(z(time_grid[-1]))` for `dz/dt = velocity_field(z, t)`, `z(time_grid[0]) = start(inputs, noise)`.

    Args:
        velocity_field: Callable `(z, t) -> v`, as for `msf_kernels.solvers.integrate`.
        time_grid: [S + 1] strictly monotone numbers, both ends included; shared by all samples.
        tableau: Explicit fixed-step method, or its name.
        start: Makes the state [B, ...] at `time_grid[0]` from the rows of inputs and noise; default: inputs and noise
            joined on axis 1, inputs first.
        readout: Makes what is kept from the state at `time_grid[-1]`: a tensor [B, ...] or a mapping of names to such;
            default: the state itself.
        cast_to: Dtype in which the velocity field receives z; default: that of the state.

    Raises:
        ValueError: The grid is not strictly monotone, or not shared.
    """

    def __init__(
        self,
        velocity_field: Callable[..., Tensor],
        time_grid: TimeGridLike,
        tableau: Tableau | str = EULER,
        *,
        start: Start = join_channels,
        readout: Callable[[Tensor], Readout] = end_state,
        cast_to: torch.dtype | None = None,
    ) -> None:
        """Check the grid and keep the rest."""
        grid = check_time_grid(time_grid)
        if isinstance(grid, Tensor):
            raise ValueError(f"time_grid must be [S + 1], shared by all samples; got shape {list(grid.shape)}")
        self._velocity_field = velocity_field
        self._time_grid = grid
        self._tableau = as_tableau(tableau)
        self._start = start
        self._readout = readout
        self._cast_to = cast_to
        self.nfe: int | None = None
        """Evaluations of the velocity field per sample, counted in the last call."""

    def __call__(self, inputs: Any, noise: Tensor) -> Readout:
        """Integrate one micro-batch from its start to the readout."""
        solution = integrate(
            self._velocity_field,
            self._start(inputs, noise),
            self._time_grid,
            self._tableau,
            cast_to=self._cast_to,
        )
        self.nfe = solution.nfe
        return self._readout(solution.state)


def sample_flow(
    velocity_field: Callable[..., Tensor],
    inputs: Inputs,
    n_samples: int,
    noise_shape: Sequence[int],
    *,
    time_grid: TimeGridLike,
    tableau: Tableau | str = EULER,
    start: Start = join_channels,
    readout: Callable[[Tensor], Readout] = end_state,
    cast_to: torch.dtype | None = None,
    **options: Any,
) -> SamplingResult:
    """Draw many samples of a velocity field for each input: `draw` with a `FlowTrajectory`.

    Args:
        velocity_field: See `FlowTrajectory`.
        inputs: See `draw`.
        n_samples: See `draw`.
        noise_shape: See `draw`.
        time_grid: See `FlowTrajectory`.
        tableau: See `FlowTrajectory`.
        start: See `FlowTrajectory`.
        readout: See `FlowTrajectory`.
        cast_to: See `FlowTrajectory`.
        **options: Any other argument of `draw`.

    Returns:
        `SamplingResult`; its `nfe` is counted.

    Raises:
        TypeError: See `draw`.
        ValueError: See `draw` and `FlowTrajectory`.

    Example:
        >>> decay = lambda z, t: -z
        >>> result = sample_flow(decay, torch.zeros(2, 1), 64, (1,), time_grid=(0.0, 0.5, 1.0))
        >>> result.statistics["readout"]["mean"].shape, result.nfe
        (torch.Size([2, 2]), 2)
    """
    trajectory = FlowTrajectory(velocity_field, time_grid, tableau, start=start, readout=readout, cast_to=cast_to)
    return draw(trajectory, inputs, n_samples, noise_shape, **options)
