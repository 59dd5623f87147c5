"""Fixed-step integration of any velocity field on any monotone time grid, forward or backward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from msf_kernels._derivatives import is_transforming
from msf_kernels.checks import as_tensor
from msf_kernels.rk_combine.api import choose_rk_combine
from msf_kernels.solvers.field_calls import (
    are_overwritten,
    checked_velocity,
    edited_text,
    evaluate_guarded,
    extent_of,
    version_of,
)
from msf_kernels.solvers.sole_memory import SoleMemory, may_be_written_again
from msf_kernels.solvers.solution import Solution, SolveStatus
from msf_kernels.solvers.tableau import EULER, Stage, Tableau, as_tableau
from msf_kernels.solvers.time_grid import TimeGridLike, check_time_grid
from msf_kernels.solvers.workspace import WITHOUT_EFFECT, Workspace

VelocityField: TypeAlias = Callable[..., Tensor]

# Time of each evaluation of one step, and the step itself: floats on a shared grid, [N] tensors on per-sample grids.
_Step: TypeAlias = tuple[Sequence["float | Tensor"], "float | Tensor"]


def integrate(
    velocity_field: VelocityField,
    z_start: Tensor,
    time_grid: TimeGridLike,
    tableau: Tableau | str = EULER,
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
        velocity_field: Callable `(z, t) -> v`; v has the shape and device of z and any floating dtype. `t` is a Python
            float on a shared grid and a tensor [N] in the grid's dtype on per-sample grids. It must change neither in
            place. It may return z, a view of it, or the same buffer every time: see Memory. Its exceptions arrive
            unchanged.
        z_start: [N, ...] floating tensor or array; dtype and memory format of the solution. Not modified.
        time_grid: [S + 1] numbers shared by all items (see `uniform_grid`, `grid_from_step_size`), or a floating
            tensor [N, S + 1] with one grid per item; strictly monotone, both ends included.
        tableau: Explicit method, or its name (see `get_tableau`; `"rk4"` is the classic one). Evaluations that only
            serve its error estimate are not made.
        return_trajectory: Also return the states at all grid times.
        cast_to: Floating dtype in which the velocity field receives z, for a network in lower precision under a
            float32 state; default that of the state. The copy is written by the pass that makes the state.
        workspace: Without effect, and gone with the next release: states are new memory.
        backend: Backend of `rk_combine`.

    Returns:
        `Solution`; `state` is a new tensor, also where the velocity field is zero.

    Raises:
        TypeError: `z_start` is not a floating tensor, the velocity is not one, or the grid does not hold numbers.
        ValueError: The grid is not monotone, or a shape or device does not fit; an unknown name of a tableau; the
            velocity field changed z or t in place.
        NotImplementedError: A derivative with respect to a shared grid; a derivative that the named backend has not.

    Memory: results of the velocity field that lie in the same memory, or were edited after they were returned, are
    recognised before a step is completed: the step's evaluations are then made once more, and results are copied from
    there on. Edits of z and t are recognised where PyTorch counts them: not under `torch.inference_mode`, through
    `.data` or by other libraries in the same memory.

    Numerics: the state stays in its dtype and times in theirs: a float64 grid does not promote a float32 state, and a
    bfloat16 state does not round the times. Arithmetic and rounding are those of `rk_combine`. No value is read back
    to the host, whatever the device. Derivatives of any order flow through every evaluation by autograd, to the start,
    to per-sample times and to whatever the velocity field uses; forward mode and the transforms of `torch.func` take
    the reference of `rk_combine`. An item's result depends on other items only through the velocity
    field.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.1.
    """
    z_start = checked_start(z_start)
    tableau = as_tableau(tableau)
    grid = check_time_grid(time_grid)
    if isinstance(grid, Tensor):
        if z_start.ndim == 0 or grid.shape[0] != z_start.shape[0]:
            raise ValueError(
                f"time_grid must be [S + 1] or [N, S + 1] for z_start {list(z_start.shape)}; got {list(grid.shape)}"
            )
        steps = _per_sample_steps(grid, tableau.fixed_step_stages)
    else:
        steps = _shared_steps(grid, tableau.fixed_step_stages)

    if workspace is not None:
        warnings.warn(WITHOUT_EFFECT, DeprecationWarning, stacklevel=2)
    solver = _FixedStep(velocity_field, z_start, tableau, cast_to, backend, keeps_states=return_trajectory)
    # The field has seen the states, and may have kept them.
    trajectory, versions = [z_start], [solver.version_of(z_start)]
    for times, dt in steps:
        solver.advance(times, dt)
        if return_trajectory:
            trajectory.append(solver.state)
            versions.append(solver.version_of(solver.state))
    if return_trajectory and [solver.version_of(state) for state in trajectory] != versions:
        raise ValueError(edited_text("velocity_field", "z"))
    return Solution(
        state=solver.state,
        trajectory=torch.stack(trajectory) if return_trajectory else None,
        nfe=solver.nfe,
        status=SolveStatus.SUCCESS,
    )


def checked_start(z_start: object) -> Tensor:
    """Return where a solve starts as a floating tensor, or raise because it is none."""
    z = as_tensor(z_start)
    if not isinstance(z, Tensor):
        raise TypeError(f"z_start must be a tensor [N, ...]; got {type(z).__name__}")
    if not z.is_floating_point():
        raise TypeError(f"z_start must have a floating dtype; got {z.dtype}")
    return z


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
        backend: str,
        *,
        keeps_states: bool,
    ) -> None:
        self.velocity_field = velocity_field
        self.state = z_start
        self.z = z_start if cast_to is None else z_start.to(cast_to)  # what the field reads
        self.writes_again = not keeps_states and may_be_written_again(z_start)
        # Where the last stage's state lies, and the last step's, if only the solver holds them.
        self.soles: list[SoleMemory | None] = [None, None]
        updates = (*tableau.fixed_step_stages[1:], tableau.solution)
        # Sources None: all slopes so far.
        self.updates = [
            (None if len(update.sources) == i + 1 else update.sources, update.weights)
            for i, update in enumerate(updates)
        ]
        self.cast_to = cast_to
        self.backend = backend
        self.nfe = 0
        # Whether a slope is needed after a later evaluation; tracing has neither addresses nor versions.
        is_needed_later = any(j < i for i, update in enumerate(updates) for j in update.sources)
        is_tracing = torch.compiler.is_compiling()
        self.counts_edits = not (is_tracing or torch.is_inference_mode_enabled() or z_start.is_inference())
        self.guards_slopes = is_needed_later and not is_tracing
        self.copies_slopes = False
        self.extent = 0
        # What serves each update, for as long as the velocities stay of one kind.
        self.kind: tuple[type[Tensor], torch.Size, torch.dtype, torch.device, bool] | None = None
        self.chosen: list[Callable[..., Any] | None] = []

    def advance(self, times: Sequence[float | Tensor], dt: float | Tensor) -> None:
        """Take one step."""
        state, z = self.state, self.z
        state_version = state._version if self.counts_edits else 0
        slopes: list[Tensor] = []
        versions: list[int] = []
        last = len(self.updates) - 1
        for i, (sources, weights) in enumerate(self.updates):
            time = times[i]
            if not self.counts_edits:
                velocity = self.velocity_field(z, time)
            elif not isinstance(time, Tensor):
                version = z._version
                velocity = self.velocity_field(z, time)
                if z._version != version:
                    raise ValueError(edited_text("velocity_field", "z"))
            else:
                velocity = evaluate_guarded(self.velocity_field, z, time)
            self.nfe += 1
            if (
                not isinstance(velocity, Tensor)
                or (type(velocity), velocity.shape, velocity.dtype, velocity.device, velocity.requires_grad)
                != self.kind
            ):
                self.expect(checked_velocity(velocity, z))
            if self.copies_slopes:
                velocity = velocity.clone()
            slopes.append(velocity)
            if i == last and self.counts_edits and state._version != state_version:
                raise ValueError(edited_text("velocity_field", "z"))
            if self.guards_slopes and not self.copies_slopes:
                if i < last:
                    versions.append(version_of(velocity))
                elif are_overwritten(slopes, versions, self.extent):
                    self.copies_slopes = True
                    return self.advance(times, dt)
            used = slopes if sources is None else [slopes[j] for j in sources]
            run = self.chosen[i] or self.choose(i, state, used, dt)
            # Let go of what the field has read: its memory is held on by others only.
            z = state
            if i == last:
                self.z = state
            combined, z = self.combine(run, used, weights, dt, is_step=i == last)
        self.state, self.z = combined, z

    def combine(
        self,
        run: Callable[..., Any],
        used: Sequence[Tensor],
        weights: Sequence[float],
        dt: float | Tensor,
        *,
        is_step: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return a state and the copy that the field reads: of a step over the last one's, of a stage likewise."""
        sole = self.soles[is_step]
        out = sole.tensor if sole is not None and sole.is_free() else None
        result = run(self.state, used, weights, dt, out=out, cast_to=self.cast_to)
        combined, z = (result, result) if self.cast_to is None else result
        if self.writes_again:
            if out is None:
                self.soles[is_step] = SoleMemory(combined)
            if self.cast_to is None:
                z = combined.detach()
        return combined, z

    def version_of(self, state: Tensor) -> int:
        return state._version if self.counts_edits else 0

    def expect(self, velocity: Tensor) -> None:
        """Forget what served velocities of another kind."""
        # Whether a transform follows a velocity is none of these: inside one every call is chosen anew.
        self.kind = (
            None
            if is_transforming()
            else (type(velocity), velocity.shape, velocity.dtype, velocity.device, velocity.requires_grad)
        )
        self.chosen = [None] * len(self.updates)
        if self.guards_slopes:
            self.extent = extent_of(velocity)
        if type(velocity) is not Tensor or torch.is_grad_enabled():  # results may then be more than memory
            self.writes_again, self.soles = False, [None, None]

    def choose(self, i: int, state: Tensor, used: Sequence[Tensor], dt: float | Tensor) -> Callable[..., Any]:
        weights = self.updates[i][1]
        chosen = choose_rk_combine(state, used, weights, dt, cast_to=self.cast_to, backend=self.backend)
        self.chosen[i] = chosen
        return chosen
