"""Adaptive integration in which every item of a batch has its own steps and finishes on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from msf_kernels._derivatives import has_derivative, is_vectorised
from msf_kernels.checks import require_int, require_positive
from msf_kernels.rk_combine import rk_combine
from msf_kernels.solvers.dense_output import has_dense_output, interpolate
from msf_kernels.solvers.integrate import VelocityField, checked_velocity
from msf_kernels.solvers.solution import AdaptiveSolution, SolveStatus
from msf_kernels.solvers.step_control import Norm, PIDController, first_step_length, rms_norm, tolerance
from msf_kernels.solvers.tableau import DOPRI5, Stage, Tableau

# A step that leaves less than this share of itself to the end is stretched to it: the rest would be a rounding error.
_STRETCH = 1e-4


def integrate_adaptive(
    velocity_field: VelocityField,
    z_start: Tensor,
    t_start: float | Tensor,
    t_end: float | Tensor,
    tableau: Tableau = DOPRI5,
    *,
    rtol: float | Tensor = 1e-4,
    atol: float | Tensor = 1e-6,
    controller: PIDController | None = None,
    max_steps: int = 10_000,
    first_step: float | None = None,
    min_step: float = 0.0,
    max_step: float | None = None,
    output_times: Sequence[float] | Tensor | None = None,
    context: Sequence[Tensor] = (),
    drop_finished: bool = True,
    norm: Norm = rms_norm,
    backend: str = "auto",
) -> AdaptiveSolution:
    """Solve `dz/dt = velocity_field(z, t)` with an embedded pair, each item to its own tolerance.

    A step of an item is kept when `norm(error / (atol + rtol max(|z_old|, |z_new|))) <= 1`, its error being the
    difference between the pair's two solutions; the controller sets the next step from that ratio.

    Args:
        velocity_field: Callable `(z [n, ...], t [n], *context) -> v` like z, any floating dtype. n shrinks as items
            finish. Its exceptions arrive unchanged.
        z_start: [N, ...] floating; dtype of the solution. Not modified.
        t_start: Number, or [N] tensor; must not require a gradient.
        t_end: Number, or [N] tensor; before `t_start` for items that run backward.
        tableau: Method with error weights: `HEUN_EULER`, `FEHLBERG2`, `BOSH3`, `DOPRI5` or one's own.
        rtol: Relative tolerance; >= 0, a number or a tensor that broadcasts over the axes of one item.
        atol: Absolute tolerance; likewise; not both zero.
        controller: Step-size controller; default `PIDController()`.
        max_steps: Limit of accepted plus rejected steps of an item; >= 1.
        first_step: Length of the first step; default chosen per item with one extra evaluation.
        min_step: Steps are not made shorter than this, and one of this length is kept whatever its error.
        max_step: Steps are not made longer than this (the last one by 1e-4 of itself); default no limit.
        output_times: [T] or [N, T] times between `t_start` and `t_end`, in any order, at which states are returned;
            they do not shorten steps.
        context: Tensors [N, ...] that the velocity field needs per item (labels, conditions); it receives their rows.
        drop_finished: Leave finished items out of further evaluations. False keeps n = N for a velocity field that
            has closed over per-item data; the evaluations wasted on finished items are counted in `nfe`.
        norm: Maps the scaled error [n, ...] to [n]; default root mean square.
        backend: Backend of `rk_combine`.

    Returns:
        `AdaptiveSolution`. An item that cannot be finished keeps its last accepted state and says why in
        `item_status`; nothing is raised.

    Raises:
        TypeError: Wrong types or dtypes.
        ValueError: Wrong shapes or ranges; a tableau without an error estimate.
        NotImplementedError: Inside `torch.func.vmap`; a derivative that the named backend has not.

    Numerics: steps of an item depend on that item only, so it takes the same evaluations alone as in any batch (as
    far as the velocity field gives it the same bits). Times are in the dtype of `t_start` and `t_end` when these are
    tensors, else float64 for a float64 state and float32 for others, and never mix with the state's dtype. Errors are
    judged in at least float32. One small read-back per step tells whether an item has finished (and, with
    `output_times`, which were passed). Derivatives of any order and mode flow through the accepted and rejected
    steps, step sizes taken as constants; a rejected trial at which the derivative of the velocity field is not finite
    spoils them.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.4.
    """
    rows = _start_rows(z_start, t_start, t_end, context)
    if tableau.error is None or tableau.embedded_order is None:
        raise ValueError(f"tableau must have error_weights, such as bosh3 or dopri5; got {tableau.name}")
    if output_times is not None and not has_dense_output(tableau):
        raise ValueError(
            f"output_times must be None for {tableau.name}: it is of order {tableau.order} and its last slope is not "
            "the first of the next step, so it cannot be interpolated; solve from one output time to the next"
        )
    if isinstance(rtol, (int, float)) and isinstance(atol, (int, float)) and rtol == atol == 0:
        raise ValueError("rtol and atol must not both be 0: no step could be kept")
    require_int("max_steps", max_steps, 1)
    for name, value in (("first_step", first_step), ("max_step", max_step), ("min_step", min_step or None)):
        if value is not None:
            require_positive(name, value)
    solver = _AdaptiveSolver(
        velocity_field=velocity_field,
        tableau=tableau,
        error=tableau.error,
        k=tableau.embedded_order + 1,
        rtol=_check_tolerance("rtol", rtol, z_start),
        atol=_check_tolerance("atol", atol, z_start),
        controller=controller or PIDController(),
        max_steps=max_steps,
        min_step=min_step,
        max_step=max_step,
        drop_finished=drop_finished,
        norm=norm,
        backend=backend,
    )
    outputs = None if output_times is None else _Outputs(output_times, rows, tableau)
    return solver.solve(rows, first_step, outputs)


@dataclass(frozen=True)
class _Rows:
    """The items that a solve still carries along: every tensor's first axis is n."""

    index: Tensor  # place in the caller's batch, int64
    z: Tensor
    slope: Tensor  # at (z, t)
    t: Tensor
    t_end: Tensor
    direction: Tensor  # +1 or -1
    length: Tensor  # of the next step, > 0
    previous: Tensor  # error ratio of the last accepted step
    older: Tensor  # and of the one before
    needs_slope: Tensor  # bool: `slope` is that of an earlier state
    is_running: Tensor  # bool
    status: Tensor
    nfe: Tensor
    n_accepted: Tensor
    n_rejected: Tensor
    context: tuple[Tensor, ...]

    def select(self, rows: Tensor) -> _Rows:
        """Return the items at the given places."""
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "context"}
        return _Rows(**picked, context=tuple(tensor[rows] for tensor in self.context))


@dataclass(frozen=True)
class _Trial:
    """One step of every item, not yet judged."""

    z: Tensor
    t: Tensor
    dt: Tensor
    slopes: list[Tensor]
    reaches_end: Tensor


@dataclass
class _AdaptiveSolver:
    velocity_field: VelocityField
    tableau: Tableau
    error: Stage
    k: int
    rtol: float | Tensor
    atol: float | Tensor
    controller: PIDController
    max_steps: int
    min_step: float
    max_step: float | None
    drop_finished: bool
    norm: Norm
    backend: str

    def solve(self, rows: _Rows, first_step: float | None, outputs: _Outputs | None) -> AdaptiveSolution:
        rows = self.prepare(rows, first_step)
        finished: list[_Rows] = []
        while True:
            rows, is_over = self.drop(rows, finished)
            if is_over:
                break
            rows = self.refresh_slopes(rows)
            trial = self.step(rows)
            ratio = self.error_ratio(rows, trial)
            is_kept = ratio <= 1.0
            if self.min_step:
                is_shortest = torch.minimum(rows.length, trial.dt.abs()) <= self.min_step
                is_kept = is_kept | (is_shortest & ratio.isfinite())
            is_kept = is_kept & rows.is_running
            if outputs is not None:
                outputs.record(rows, trial, is_kept)
            rows = self.update(rows, trial, ratio, is_kept)
        return _assemble(finished, outputs)

    def prepare(self, rows: _Rows, first_step: float | None) -> _Rows:
        """Evaluate the first slopes and choose the first steps."""
        if rows.index.shape[0] == 0:
            return rows
        longest = (rows.t_end - rows.t).abs()
        rows = replace(rows, slope=self.evaluate(rows, rows.z, rows.t), nfe=rows.nfe + 1)
        scale = tolerance(rows.z, rows.z, self.rtol, self.atol)
        is_finite = self.norm(rows.slope / scale).isfinite()
        if first_step is None:

            def probe(length: Tensor) -> Tensor:
                dt = (rows.direction * length).detach()
                z = rk_combine(rows.z, [rows.slope], [1.0], dt, backend=self.backend)
                return self.evaluate(rows, z, rows.t + dt)

            with torch.no_grad():
                length = first_step_length(probe, rows.z, rows.slope, longest, scale, self.norm, self.k).detach()
            rows = replace(rows, nfe=rows.nfe + 1)
        else:
            length = torch.full_like(longest, first_step)
        return replace(
            rows,
            length=self.limit(length),
            status=torch.where(is_finite, rows.status, int(SolveStatus.NON_FINITE)),
            is_running=rows.is_running & is_finite,
        )

    def drop(self, rows: _Rows, finished: list[_Rows]) -> tuple[_Rows, bool]:
        """Move finished items out; the read-back of a step is here."""
        if self.drop_finished:
            stopped = (~rows.is_running).nonzero().squeeze(1)
            if stopped.shape[0]:
                finished.append(rows.select(stopped))
                rows = rows.select(rows.is_running.nonzero().squeeze(1))
            is_over = rows.index.shape[0] == 0
        else:
            is_over = not bool(rows.is_running.any())
        if is_over:
            finished.append(rows)
        return rows, is_over

    def refresh_slopes(self, rows: _Rows) -> _Rows:
        """Evaluate the first slope of the next step where the last one cannot serve as it."""
        if self.tableau.is_first_same_as_last:
            return rows
        wanted = (rows.needs_slope & rows.is_running).nonzero().squeeze(1)
        if wanted.shape[0] == 0:
            return rows
        if not self.drop_finished or wanted.shape[0] == rows.index.shape[0]:
            slope, nfe = self.evaluate(rows, rows.z, rows.t), rows.nfe + 1
        else:
            part = rows.select(wanted)
            fresh = self.evaluate(part, part.z, part.t)
            slope = rows.slope.to(fresh.dtype).index_copy(0, wanted, fresh)
            nfe = rows.nfe.index_add(0, wanted, torch.ones_like(part.nfe))
        return replace(rows, slope=slope, nfe=nfe, needs_slope=torch.zeros_like(rows.needs_slope))

    def step(self, rows: _Rows) -> _Trial:
        remaining = (rows.t_end - rows.t).abs()
        reaches_end = rows.length * (1.0 + _STRETCH) >= remaining
        dt = torch.where(reaches_end, rows.t_end - rows.t, rows.direction * rows.length)
        # Items that have finished but are kept in the batch stand still.
        dt = torch.where(rows.is_running, dt, 0.0)
        t_new = torch.where(reaches_end & rows.is_running, rows.t_end, rows.t + dt)
        slopes = [rows.slope]
        z = rows.z
        for stage in self.tableau.stages[1:]:
            z = self.combine(rows.z, slopes, stage, dt)
            slopes.append(self.evaluate(rows, z, t_new if stage.node == 1.0 else rows.t + stage.node * dt))
        if not self.tableau.is_first_same_as_last:
            z = self.combine(rows.z, slopes, self.tableau.solution, dt)
        return _Trial(z, t_new, dt, slopes, reaches_end)

    def error_ratio(self, rows: _Rows, trial: _Trial) -> Tensor:
        with torch.no_grad():
            error = self.combine(torch.zeros_like(rows.z), trial.slopes, self.error, trial.dt)
            return self.norm(error / tolerance(rows.z, trial.z, self.rtol, self.atol)).detach()  # also in forward mode

    def update(self, rows: _Rows, trial: _Trial, ratio: Tensor, is_kept: Tensor) -> _Rows:
        """Move the kept items on, and set the next steps and the statuses."""
        factor = self.controller.factor(ratio, rows.previous, rows.older, is_kept, self.k)
        length = self.limit(trial.dt.abs() * factor.to(trial.dt))
        t = torch.where(is_kept, trial.t, rows.t)
        n_accepted = rows.n_accepted + is_kept
        n_rejected = rows.n_rejected + (rows.is_running & ~is_kept)

        is_done = is_kept & trial.reaches_end
        is_stuck = ~is_done & (t + rows.direction * length == t)
        is_out_of_steps = ~is_done & (n_accepted + n_rejected >= self.max_steps)
        status = torch.where(is_out_of_steps, int(SolveStatus.STEP_LIMIT), rows.status)
        status = torch.where(is_stuck, int(SolveStatus.STEP_UNDERFLOW), status)
        status = torch.where(is_stuck & ~ratio.isfinite(), int(SolveStatus.NON_FINITE), status)

        ratio = ratio.clamp_min(1e-10)
        return replace(
            rows,
            z=_where_kept(is_kept, trial.z, rows.z),
            slope=(
                _where_kept(is_kept, trial.slopes[-1], rows.slope) if self.tableau.is_first_same_as_last else rows.slope
            ),
            t=t,
            length=torch.where(rows.is_running, length, rows.length),
            previous=torch.where(is_kept, ratio, rows.previous),
            older=torch.where(is_kept, rows.previous, rows.older),
            needs_slope=rows.needs_slope | is_kept,
            is_running=rows.is_running & ~is_done & ~is_stuck & ~is_out_of_steps,
            status=torch.where(rows.is_running, status, rows.status),
            nfe=rows.nfe + (self.tableau.n_stages - 1),
            n_accepted=n_accepted,
            n_rejected=n_rejected,
        )

    def evaluate(self, rows: _Rows, z: Tensor, t: Tensor) -> Tensor:
        velocity = checked_velocity(self.velocity_field(z, t, *rows.context), z)
        _refuse_vmap("velocity_field", velocity)
        return velocity

    def combine(self, state: Tensor, slopes: Sequence[Tensor], stage: Stage, dt: Tensor) -> Tensor:
        return rk_combine(state, [slopes[j] for j in stage.sources], stage.weights, dt, backend=self.backend)

    def limit(self, length: Tensor) -> Tensor:
        return length.clamp(self.min_step, self.max_step)


class _Outputs:
    """States at output times, collected as steps pass them."""

    def __init__(self, times: Sequence[float] | Tensor, rows: _Rows, tableau: Tableau) -> None:
        n_items = rows.index.shape[0]
        grid = times.to(rows.t) if isinstance(times, Tensor) else rows.t.new_tensor(list(times))
        if grid.ndim == 1:
            grid = grid.expand(n_items, -1)
        if grid.ndim != 2 or grid.shape[0] != n_items:
            raise ValueError(f"output_times must be [T] or [N, T] with N = {n_items}; got {list(grid.shape)}")
        share = (grid - rows.t[:, None]) / (rows.t_end - rows.t)[:, None]
        if not bool(((share >= 0.0) & (share <= 1.0)).all()):
            raise ValueError("output_times must lie between t_start and t_end of every item")
        self.times = grid
        self.tableau = tableau
        self.start = rows.z
        at_start = (grid == rows.t[:, None]).nonzero()
        self.places = [at_start[:, 0] * grid.shape[1] + at_start[:, 1]]
        self.states = [rows.z[at_start[:, 0]]]

    def record(self, rows: _Rows, trial: _Trial, is_kept: Tensor) -> None:
        times = self.times[rows.index]
        direction = rows.direction[:, None]
        is_after = direction * (times - rows.t[:, None]) > 0
        is_passed = is_after & (direction * (times - trial.t[:, None]) <= 0) & is_kept[:, None]
        row, column = is_passed.nonzero().unbind(1)
        if row.shape[0] == 0:
            return
        time = times[row, column]
        is_end = time == trial.t[row]
        self.places.append(rows.index[row] * self.times.shape[1] + column)
        if bool(is_end.all()):  # the usual case: the end of the solve is all that is wanted
            self.states.append(trial.z[row])
            return
        theta = torch.where(is_end, 1.0, (time - rows.t[row]) / trial.dt[row])
        self.states.append(
            interpolate(
                self.tableau,
                rows.z[row],
                trial.z[row],
                [slope[row] for slope in trial.slopes],
                trial.dt[row],
                theta,
            )
        )

    def trajectory(self) -> Tensor:
        n_items, n_times = self.times.shape
        missing = self.start.new_full((n_items * n_times, *self.start.shape[1:]), torch.nan)
        filled = missing.index_copy(0, _joined(self.places), _joined(self.states))
        return filled.reshape(n_items, n_times, *self.start.shape[1:]).transpose(0, 1)


def _start_rows(z_start: Tensor, t_start: float | Tensor, t_end: float | Tensor, context: Sequence[Tensor]) -> _Rows:
    if not isinstance(z_start, Tensor):
        raise TypeError(f"z_start must be a tensor [N, ...]; got {type(z_start).__name__}")
    if not z_start.is_floating_point():
        raise TypeError(f"z_start must have a floating dtype; got {z_start.dtype}")
    if z_start.ndim == 0:
        raise ValueError("z_start must be [N, ...], one item per row; got a tensor without axes")
    n_items = z_start.shape[0]
    for name, tensor in (("z_start", z_start), *((f"context[{i}]", tensor) for i, tensor in enumerate(context))):
        _refuse_vmap(name, tensor)
    for i, tensor in enumerate(context):
        if tensor.ndim == 0 or tensor.shape[0] != n_items:
            raise ValueError(f"context[{i}] must be [N, ...] with N = {n_items}; got {list(tensor.shape)}")
    dtypes = [t.dtype for t in (t_start, t_end) if isinstance(t, Tensor)]
    dtype = torch.float64 if z_start.dtype == torch.float64 else torch.float32
    if dtypes:
        dtype = torch.promote_types(dtypes[0], dtypes[-1])
    t, end = (_check_time(name, value, z_start, dtype) for name, value in (("t_start", t_start), ("t_end", t_end)))
    if not bool(((t != end) & t.isfinite() & end.isfinite()).all()):
        raise ValueError("t_start and t_end must be finite and differ for every item")
    count = torch.zeros(n_items, dtype=torch.int64, device=z_start.device)
    ratio = torch.ones_like(t, dtype=torch.promote_types(z_start.dtype, torch.float32))
    flag = torch.zeros(n_items, dtype=torch.bool, device=z_start.device)
    return _Rows(
        index=torch.arange(n_items, device=z_start.device),
        z=z_start,
        slope=z_start,
        t=t,
        t_end=end,
        direction=torch.sign(end - t),
        length=torch.ones_like(t),
        previous=ratio,
        older=ratio,
        needs_slope=flag,
        is_running=~flag,
        status=count,
        nfe=count,
        n_accepted=count,
        n_rejected=count,
        context=tuple(context),
    )


def _check_time(name: str, value: float | Tensor, z_start: Tensor, dtype: torch.dtype) -> Tensor:
    n_items = z_start.shape[0]
    if not isinstance(value, Tensor):
        return torch.full((n_items,), float(value), dtype=dtype, device=z_start.device)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a number or a floating tensor [N]; got {value.dtype}")
    if has_derivative(value):
        raise ValueError(f"{name} must not require a gradient: adaptive steps are constants of the solve")
    _refuse_vmap(name, value)
    if value.ndim != 0 and value.shape != (n_items,):
        raise ValueError(f"{name} must be a number or [N] with N = {n_items}; got {list(value.shape)}")
    return value.to(device=z_start.device, dtype=dtype).expand(n_items)


def _refuse_vmap(name: str, value: Tensor) -> None:
    if is_vectorised(value):
        raise NotImplementedError(
            f"{name} must not be vectorised by torch.func.vmap: adaptive steps follow from values, which it hides; put "
            'the items on the first axis, or use integrate, with backend="reference"'
        )


def _check_tolerance(name: str, value: float | Tensor, z_start: Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and >= 0; got {value}")
        return value
    item = z_start.shape[1:]
    if value.ndim > len(item) or any(v not in (1, n) for v, n in zip(value.shape[::-1], item[::-1], strict=False)):
        raise ValueError(f"{name} must broadcast over one item, {list(item)}; got {list(value.shape)}")
    if not bool(((value >= 0) & value.isfinite()).all()):
        raise ValueError(f"{name} must be finite and >= 0 everywhere")
    return value.to(z_start.device)


def _where_kept(is_kept: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return the rows of `new` [n, ...] where the flag [n] is set, else those of `old`."""
    # Reading a flag back costs nothing on a CPU, and the usual step, that all items take, then costs no pass.
    if is_kept.device.type == "cpu" and not torch.compiler.is_compiling() and bool(is_kept.all()):
        return new.to(torch.promote_types(new.dtype, old.dtype))
    return torch.where(is_kept.reshape(-1, *([1] * (new.ndim - 1))), new, old)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _assemble(finished: list[_Rows], outputs: _Outputs | None) -> AdaptiveSolution:
    order = torch.cat([rows.index for rows in finished]).argsort()

    def gather(name: str) -> Tensor:
        return _joined([getattr(rows, name) for rows in finished])[order]

    return AdaptiveSolution(
        state=gather("z"),
        trajectory=None if outputs is None else outputs.trajectory(),
        t_reached=gather("t"),
        nfe=gather("nfe"),
        n_accepted=gather("n_accepted"),
        n_rejected=gather("n_rejected"),
        item_status=gather("status"),
    )
