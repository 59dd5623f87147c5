"""Fixed-step integration of any velocity field on any monotone time grid, forward or backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from msf_kernels._derivatives import is_transforming
from msf_kernels.rk_combine._allocation import empty_combined
from msf_kernels.rk_combine.api import choose_rk_combine, choose_rk_combine_out
from msf_kernels.solvers.solution import Solution, SolveStatus
from msf_kernels.solvers.tableau import EULER, Stage, Tableau
from msf_kernels.solvers.time_grid import TimeGridLike, check_time_grid
from msf_kernels.solvers.workspace import Workspace

VelocityField: TypeAlias = Callable[..., Tensor]

# Time of each evaluation of one step, and the step itself: floats on a shared grid, [N] tensors on per-sample grids.
_Step: TypeAlias = tuple[Sequence["float | Tensor"], "float | Tensor"]


def integrate(
    velocity_field: VelocityField,
    z_start: Tensor,
    time_grid: TimeGridLike,
    tableau: Tableau = EULER,
    *,
    return_trajectory: bool = False,
    cast_to: torch.dtype | None = None,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> Solution:
    """Solve `dz/dt = velocity_field(z, t)` from `z(time_grid[0]) = z_start` with one explicit step per interval.

    Per step, `k_i = velocity_field(z + dt sum_j matrix_ij k_j, t + nodes_i dt)` and `z + dt sum_i weights_i k_i`, each
    sum in one fused pass.

    Args:
        velocity_field: Callable `(z, t) -> v`; v has the shape of z and any floating dtype. `t` is a Python float on
            a shared grid and a tensor [N] in the grid's dtype on per-sample grids. It must not change z in place,
            nor a result that it returned earlier in the step. Its exceptions arrive unchanged.
        z_start: [N, ...] floating; dtype and memory format of the solution. Not modified.
        time_grid: [S + 1] numbers shared by all items (see `uniform_grid`, `grid_from_step_size`), or a floating
            tensor [N, S + 1] with one grid per item; strictly monotone, both ends included.
        tableau: Explicit method. Evaluations that only serve its error estimate are not made.
        return_trajectory: Also return the states at all grid times.
        cast_to: Floating dtype in which the velocity field receives z, for a network in lower precision under a
            float32 state; default that of the state. The copy is written by the pass that makes the state.
        workspace: Buffers to write states into, at every step and in every solve that is given the same ones. The
            velocity field must then not keep z after it returns (its result may be z or a view of it). Only what is
            returned is new memory. Not while gradients are recorded; ignored while tracing, and inside transforms.
        backend: Backend of `rk_combine`.

    Returns:
        `Solution`; `state` is a new tensor, also where the velocity field is zero.

    Raises:
        TypeError: `z_start` is not a floating tensor, the velocity is not one, or the grid does not hold numbers.
        ValueError: The grid is not monotone, or a shape does not fit.
        NotImplementedError: A derivative with respect to a shared grid; a derivative that the named backend has not.

    Numerics: the state stays in its dtype and times in theirs: a float64 grid does not promote a float32 state, and a
    bfloat16 state does not round the times. Arithmetic and rounding are those of `rk_combine`. No value is read back
    to the host, whatever the device. Derivatives of any order flow through every evaluation by autograd, to the start,
    to per-sample times and to whatever the velocity field uses; forward mode and the transforms of `torch.func` take
    the reference of `rk_combine`. An item's result depends on other items only through the velocity
    field.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.1.
    """
    if not isinstance(z_start, Tensor):
        raise TypeError(f"z_start must be a tensor [N, ...]; got {type(z_start).__name__}")
    if not z_start.is_floating_point():
        raise TypeError(f"z_start must have a floating dtype; got {z_start.dtype}")
    grid = check_time_grid(time_grid)
    if isinstance(grid, Tensor):
        if z_start.ndim == 0 or grid.shape[0] != z_start.shape[0]:
            raise ValueError(
                f"time_grid must be [S + 1] or [N, S + 1] for z_start {list(z_start.shape)}; got {list(grid.shape)}"
            )
        steps = _per_sample_steps(grid, tableau.fixed_step_stages)
    else:
        steps = _shared_steps(grid, tableau.fixed_step_stages)

    solver = _FixedStep(
        velocity_field,
        z_start,
        tableau,
        cast_to,
        None if torch.compiler.is_compiling() or is_transforming() else workspace,
        backend,
    )
    state, z = z_start, z_start if cast_to is None else z_start.to(cast_to)
    trajectory = [z_start]
    n_steps = (len(grid) if isinstance(grid, tuple) else grid.shape[1]) - 1
    for i, (times, dt) in enumerate(steps):
        state, z = solver.advance(state, z, times, dt, is_kept=return_trajectory or i == n_steps - 1)
        if return_trajectory:
            trajectory.append(state)
    return Solution(
        state=state,
        trajectory=torch.stack(trajectory) if return_trajectory else None,
        nfe=solver.nfe,
        status=SolveStatus.SUCCESS,
    )


def checked_velocity(velocity: object, z: Tensor) -> Tensor:
    """Return what a velocity field returned for `z`, or raise because it is no tensor of the shape of `z`."""
    if not isinstance(velocity, Tensor):
        raise TypeError(f"velocity_field must return a tensor; got {type(velocity).__name__}")
    if velocity.shape != z.shape:
        raise ValueError(f"velocity_field must return the shape of z, {list(z.shape)}; got {list(velocity.shape)}")
    return velocity


def _shared_steps(grid: tuple[float, ...], stages: Sequence[Stage]) -> Iterator[_Step]:
    for start, end in zip(grid[:-1], grid[1:], strict=True):
        dt = end - start
        # A node at the end is the grid's own number, not one that rounding moved.
        yield [end if stage.node == 1.0 else start + stage.node * dt for stage in stages], dt


def _per_sample_steps(grid: Tensor, stages: Sequence[Stage]) -> Iterator[_Step]:
    by_time = grid.T.contiguous()  # [S + 1, N]
    n_steps = by_time.shape[0] - 1
    starts, ends = by_time.narrow(0, 0, n_steps), by_time.narrow(0, 1, n_steps)
    dt = ends - starts
    times = [ends if stage.node == 1.0 else starts + stage.node * dt for stage in stages]
    yield from zip(zip(*(t.unbind(0) for t in times), strict=True), dt.unbind(0), strict=True)


class _FixedStep:
    """Takes steps and counts evaluations.

    Beside a cheap field the interpreter's own work shows: it runs from memory that the states push out of the near
    caches. So `advance` makes no call that it can do without, and what holds for the whole solve is settled before.
    """

    def __init__(
        self,
        velocity_field: VelocityField,
        z_start: Tensor,
        tableau: Tableau,
        cast_to: torch.dtype | None,
        workspace: Workspace | None,
        backend: str,
    ) -> None:
        self.velocity_field = velocity_field
        updates = (*tableau.fixed_step_stages[1:], tableau.solution)
        # Sources None: all slopes so far.
        self.updates = [
            (None if len(update.sources) == i + 1 else update.sources, update.weights)
            for i, update in enumerate(updates)
        ]
        self.cast_to = cast_to
        self.backend = backend
        self.nfe = 0
        # What serves each update, in new memory and in a buffer, for as long as the velocities stay of one kind.
        self.kind: tuple[torch.Size, torch.dtype, torch.device, bool] | None = None
        self.chosen: list[Callable[..., Any] | None] = []
        self.chosen_out: list[Callable[..., None] | None] = []
        # A buffer for each inner evaluation, because its slope may be a view of it.
        self.buffers = [
            None if workspace is None else workspace.get(f"inner {i}", z_start) for i in range(len(updates) - 1)
        ]
        self.state_buffer = None if workspace is None else _StateBuffer(workspace)

    def advance(
        self, state: Tensor, z: Tensor, times: Sequence[float | Tensor], dt: float | Tensor, *, is_kept: bool
    ) -> tuple[Tensor, Tensor]:
        """Return the state after one step, in new memory if it is to be kept, and the copy that the field reads."""
        slopes: list[Tensor] = []
        combined = state
        dt_number, dt_items = (1.0, dt) if isinstance(dt, Tensor) else (dt, None)
        last = len(self.buffers)
        for i, (sources, weights) in enumerate(self.updates):
            velocity = self.velocity_field(z, times[i])
            self.nfe += 1
            if (
                not isinstance(velocity, Tensor)
                or (velocity.shape, velocity.dtype, velocity.device, velocity.requires_grad) != self.kind
            ):
                self.expect(checked_velocity(velocity, z))
            slopes.append(velocity)
            used = slopes if sources is None else [slopes[j] for j in sources]
            if i < last:
                out = self.buffers[i]
            elif self.state_buffer is None:
                out = None
            else:
                out = empty_combined(state, state.dtype) if is_kept else self.state_buffer.next(state, slopes)
            if out is None:
                run = self.chosen[i] or self.choose(i, state, used, dt)
                result = run(state, used, weights, dt, cast_to=self.cast_to)
                combined, z = (result, result) if self.cast_to is None else result
            else:
                fill = self.chosen_out[i] or self.choose_out(i, state, used, dt, out)
                cast_out = None if self.cast_to is None else torch.empty_like(out, dtype=self.cast_to)
                fill(state, used, weights, dt_number, dt_items, out, cast_out)
                combined = out
                z = out if cast_out is None else cast_out
        return combined, z

    def expect(self, velocity: Tensor) -> None:
        """Forget what served velocities of another kind."""
        # Whether a transform follows a velocity is none of these: inside one every call is chosen anew.
        self.kind = (
            None if is_transforming() else (velocity.shape, velocity.dtype, velocity.device, velocity.requires_grad)
        )
        self.chosen = [None] * len(self.updates)
        self.chosen_out = [None] * len(self.updates)

    def choose(self, i: int, state: Tensor, used: Sequence[Tensor], dt: float | Tensor) -> Callable[..., Any]:
        weights = self.updates[i][1]
        chosen = choose_rk_combine(state, used, weights, dt, cast_to=self.cast_to, backend=self.backend)
        self.chosen[i] = chosen
        return chosen

    def choose_out(
        self, i: int, state: Tensor, used: Sequence[Tensor], dt: float | Tensor, out: Tensor
    ) -> Callable[..., None]:
        weights = self.updates[i][1]
        chosen = choose_rk_combine_out(state, used, weights, dt, out=out, cast_to=self.cast_to, backend=self.backend)
        self.chosen_out[i] = chosen
        return chosen


class _StateBuffer:
    """Where the states of a solve go: each over the last one, unless a slope of the step still needs that."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.buffer: Tensor | None = None
        self.addresses: range | None = None

    def next(self, state: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Return where the state after `state` goes."""
        if self.buffer is None:
            self.buffer = self.workspace.get("state", state)
            # Only a plain tensor's address tells what shares its memory.
            if type(self.buffer) is Tensor and (first := self.buffer.data_ptr()):
                self.addresses = range(first, first + self.buffer.untyped_storage().nbytes())
        if state is not self.buffer:
            return self.buffer
        for slope in slopes:
            if self.addresses is None or type(slope) is not Tensor or slope.data_ptr() in self.addresses:
                return self.workspace.get("other state", state)
        return self.buffer
