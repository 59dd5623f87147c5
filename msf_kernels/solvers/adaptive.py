"""Adaptive integration in which every item of a batch has its own steps and finishes on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msf_kernels.checks import as_float, as_int, require_int, require_positive
from msf_kernels.fixed_order import rms_norm
from msf_kernels.rk_combine import rk_combine
from msf_kernels.solvers.adaptive_items import Rows, Trial, check_tolerance, joined, refuse_vmap, start_rows
from msf_kernels.solvers.adaptive_outputs import Outputs
from msf_kernels.solvers.dense_output import has_dense_output
from msf_kernels.solvers.field_calls import (
    checked_velocity,
    evaluate_guarded,
    is_overwritten,
    version_of,
)
from msf_kernels.solvers.integrate import VelocityField
from msf_kernels.solvers.solution import AdaptiveSolution, SolveStatus
from msf_kernels.solvers.step_control import ErrorNorm, Norm, PIDController, first_step_length
from msf_kernels.solvers.tableau import DOPRI5, Stage, Tableau, as_tableau

# A step that leaves less than this share of itself to the end is stretched to it: the rest would be a rounding error.
_STRETCH = 1e-4


def integrate_adaptive(
    velocity_field: VelocityField,
    z_start: Tensor,
    t_start: float | Tensor,
    t_end: float | Tensor,
    tableau: Tableau | str = DOPRI5,
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
            finish. It must change neither z nor t in place; it may return z, a view of it, or the same buffer every
            time: see Memory. Its exceptions arrive unchanged.
        z_start: [N, ...] floating tensor or array; dtype of the solution. Not modified.
        t_start: Number, or [N] tensor; must not require a gradient.
        t_end: Number, or [N] tensor; before `t_start` for items that run backward.
        tableau: Method with error weights: `HEUN_EULER`, `FEHLBERG2`, `BOSH3`, `DOPRI5`, the name of one, or one's own.
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
        norm: Maps the scaled error [n, ...] to [n]; default root mean square. An item's number must depend on its own
            errors only.
        backend: Backend of `rk_combine`.

    Returns:
        `AdaptiveSolution`. An item that cannot be finished keeps its last accepted state and says why in
        `item_status`; nothing is raised.

    Raises:
        TypeError: Wrong types or dtypes.
        ValueError: Wrong shapes or ranges; a tableau without an error estimate or an unknown name; the velocity field
            changed z or t in place.
        NotImplementedError: Inside `torch.func.vmap`; a derivative that the named backend has not.

    Memory: as for `integrate`. Where results of the velocity field lie in the same memory, or were edited after they
    were returned, they are copied from there on; at most one step's evaluations are made once more, and counted.

    Numerics: steps of an item depend on that item only, and every sum over an item is added in an order that follows
    from the item's shape alone. So it has the same bits and takes the same evaluations alone as in any batch, at any
    place in it and with any number of threads, as far as the velocity field (and a `norm` of one's own) gives it the
    same bits. Times are in the dtype of `t_start` and `t_end` when these are
    tensors, else float64 for a float64 state and float32 for others, and never mix with the state's dtype. Errors are
    judged in at least float32. One small read-back per step tells whether an item has finished (and, with
    `output_times`, which were passed). Derivatives of any order and mode flow through the accepted and rejected
    steps, step sizes taken as constants; a rejected trial at which the derivative of the velocity field is not finite
    spoils them.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.4.
    """
    rows = start_rows(z_start, t_start, t_end, context)
    tableau = as_tableau(tableau)
    if tableau.error is None or tableau.embedded_order is None:
        raise ValueError(f"tableau must have error_weights, such as bosh3 or dopri5; got {tableau.name}")
    if output_times is not None and not has_dense_output(tableau):
        raise ValueError(
            f"output_times must be None for {tableau.name}: it is of order {tableau.order} and its last slope is not "
            "the first of the next step, so it cannot be interpolated; solve from one output time to the next"
        )
    rtol, atol = check_tolerance("rtol", rtol, rows.z), check_tolerance("atol", atol, rows.z)
    if bool(torch.as_tensor(rtol + atol == 0).any()):
        raise ValueError("rtol and atol must not both be 0: no step could be kept")
    max_steps = as_int("max_steps", max_steps)
    require_int("max_steps", max_steps, 1)
    first_step = None if first_step is None else as_float("first_step", first_step)
    max_step = None if max_step is None else as_float("max_step", max_step)
    min_step = as_float("min_step", min_step)
    for name, value in (("first_step", first_step), ("max_step", max_step), ("min_step", min_step or None)):
        if value is not None:
            require_positive(name, value)
    solver = _AdaptiveSolver(
        velocity_field=velocity_field,
        tableau=tableau,
        error=tableau.error,
        k=tableau.embedded_order + 1,
        error_norm=ErrorNorm(rtol, atol, norm, backend),
        controller=controller or PIDController(),
        max_steps=max_steps,
        min_step=min_step,
        max_step=max_step,
        drop_finished=drop_finished,
        backend=backend,
    )
    outputs = None if output_times is None else Outputs(output_times, rows, tableau, backend)
    return solver.solve(rows, first_step, outputs)


@dataclass
class _AdaptiveSolver:
    velocity_field: VelocityField
    tableau: Tableau
    error: Stage
    k: int
    error_norm: ErrorNorm
    controller: PIDController
    max_steps: int
    min_step: float
    max_step: float | None
    drop_finished: bool
    backend: str
    copies_slopes: bool = False  # the velocity field uses the memory of its results again

    def solve(self, rows: Rows, first_step: float | None, outputs: Outputs | None) -> AdaptiveSolution:
        rows = self.prepare(rows, first_step)
        finished: list[Rows] = []
        while True:
            rows, is_over = self.drop(rows, finished)
            if is_over:
                break
            rows = self.refresh_slopes(rows)
            rows, trial = self.step(rows)
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

    def prepare(self, rows: Rows, first_step: float | None) -> Rows:
        """Evaluate the first slopes and choose the first steps."""
        if rows.index.shape[0] == 0:
            return rows
        longest = (rows.t_end - rows.t).abs()
        slope = self.evaluate(rows, rows.z, rows.t)
        with torch.no_grad():
            speed = self.error_norm(rows.z, rows.z, [slope], [1.0], 1.0)
            is_finite = speed.isfinite() & _is_finite(rows.z)
        rows = replace(rows, slope=slope, nfe=rows.nfe + 1)
        if first_step is None:
            # The probe may write over what the field has just returned, and shows whether it does.
            rows, version = replace(rows, slope=slope.clone()), version_of(slope)

            def probe(length: Tensor) -> Tensor:
                dt = (rows.direction * length).detach()
                z = rk_combine(rows.z, [rows.slope], [1.0], dt, backend=self.backend)
                probed = self.evaluate(rows, z, rows.t + dt)
                self.copies_slopes = is_overwritten([slope, probed], [version, version_of(probed)])
                return probed

            with torch.no_grad():
                length = first_step_length(probe, rows.z, rows.slope, speed, longest, self.error_norm, self.k).detach()
            rows = replace(rows, nfe=rows.nfe + 1)
        else:
            length = torch.full_like(longest, first_step)
        return replace(
            rows,
            length=self.limit(length),
            status=torch.where(is_finite, rows.status, int(SolveStatus.NON_FINITE)),
            is_running=rows.is_running & is_finite,
        )

    def drop(self, rows: Rows, finished: list[Rows]) -> tuple[Rows, bool]:
        """Move finished items out; the read-back of a step is here."""
        if self.drop_finished:
            stopped = (~rows.is_running).nonzero().squeeze(1)
            if stopped.shape[0] == rows.index.shape[0]:
                finished.append(rows)  # as they are: the usual end copies nothing
                return rows, True
            if stopped.shape[0]:
                finished.append(rows.select(stopped))
                rows = rows.select(rows.is_running.nonzero().squeeze(1))
            return rows, False
        is_over = not bool(rows.is_running.any())
        if is_over:
            finished.append(rows)
        return rows, is_over

    def refresh_slopes(self, rows: Rows) -> Rows:
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
            held = rows.slope if self.copies_slopes else rows.slope.clone()  # the field may write over it
            fresh = self.evaluate(part, part.z, part.t)
            slope = held.to(fresh.dtype).index_copy(0, wanted, fresh)
            nfe = rows.nfe.index_add(0, wanted, torch.ones_like(part.nfe))
        return replace(rows, slope=slope, nfe=nfe, needs_slope=torch.zeros_like(rows.needs_slope))

    def step(self, rows: Rows) -> tuple[Rows, Trial]:
        """Take a step, with slopes that are surely those that the field returned."""
        trial, overwritten = self.attempt(rows)
        if overwritten:
            self.copies_slopes = True
            rows = replace(rows, slope=self.evaluate(rows, rows.z, rows.t), nfe=rows.nfe + self.tableau.n_stages)
            trial, _ = self.attempt(rows)
        return rows, trial

    def attempt(self, rows: Rows) -> tuple[Trial, bool]:
        """Take a step; also say whether slopes may have been written over by later evaluations."""
        remaining = rows.t_end - rows.t
        reaches_end = rows.length * (1.0 + _STRETCH) >= remaining.abs()
        dt = torch.where(reaches_end, remaining, rows.direction * rows.length)
        # Items that have finished but are kept in the batch stand still.
        dt = torch.where(rows.is_running, dt, 0.0)
        t_new = torch.where(reaches_end & rows.is_running, rows.t_end, rows.t + dt)
        slopes, versions = [rows.slope], [version_of(rows.slope)]
        z = rows.z
        for stage in self.tableau.stages[1:]:
            z = self.combine(rows.z, slopes, stage, dt)
            slopes.append(self.evaluate(rows, z, t_new if stage.node == 1.0 else rows.t + stage.node * dt))
            versions.append(version_of(slopes[-1]))
        overwritten = not self.copies_slopes and is_overwritten(slopes, versions)
        if not self.tableau.is_first_same_as_last:
            z = self.combine(rows.z, slopes, self.tableau.solution, dt)
        return Trial(z, t_new, dt, slopes, reaches_end), overwritten

    def error_ratio(self, rows: Rows, trial: Trial) -> Tensor:
        with torch.no_grad():
            slopes = [trial.slopes[j] for j in self.error.sources]
            ratio = self.error_norm(rows.z, trial.z, slopes, self.error.weights, trial.dt)
            return ratio.detach()  # also in forward mode

    def update(self, rows: Rows, trial: Trial, ratio: Tensor, is_kept: Tensor) -> Rows:
        """Move the kept items on, and set the next steps and the statuses."""
        factor = self.controller.factor(ratio, rows.previous, rows.older, is_kept, self.k)
        length = self.limit(trial.dt.abs() * factor.to(trial.dt))
        t = torch.where(is_kept, trial.t, rows.t)
        n_accepted = rows.n_accepted + is_kept
        n_rejected = rows.n_rejected + (rows.is_running & ~is_kept)

        is_done = is_kept & trial.reaches_end
        is_going = ~is_done
        is_stuck = is_going & (t + rows.direction * length == t)
        is_out_of_steps = is_going & (n_accepted + n_rejected >= self.max_steps)
        status = torch.where(is_out_of_steps, int(SolveStatus.STEP_LIMIT), rows.status)
        status = torch.where(is_stuck, int(SolveStatus.STEP_UNDERFLOW), status)
        status = torch.where(is_stuck & ~ratio.isfinite(), int(SolveStatus.NON_FINITE), status)

        ratio = ratio.clamp_min(1e-10)
        chosen = _chooser(is_kept)
        return replace(
            rows,
            z=chosen(trial.z, rows.z),
            slope=chosen(trial.slopes[-1], rows.slope) if self.tableau.is_first_same_as_last else rows.slope,
            t=t,
            length=torch.where(rows.is_running, length, rows.length),
            previous=torch.where(is_kept, ratio, rows.previous),
            older=torch.where(is_kept, rows.previous, rows.older),
            needs_slope=rows.needs_slope | is_kept,
            is_running=rows.is_running & is_going & ~(is_stuck | is_out_of_steps),
            status=torch.where(rows.is_running, status, rows.status),
            nfe=rows.nfe + (self.tableau.n_stages - 1),
            n_accepted=n_accepted,
            n_rejected=n_rejected,
        )

    def evaluate(self, rows: Rows, z: Tensor, t: Tensor) -> Tensor:
        velocity = checked_velocity(evaluate_guarded(self.velocity_field, z, t, *rows.context), z)
        refuse_vmap("velocity_field", velocity)
        return velocity.clone() if self.copies_slopes else velocity

    def combine(self, state: Tensor, slopes: Sequence[Tensor], stage: Stage, dt: Tensor) -> Tensor:
        return rk_combine(state, [slopes[j] for j in stage.sources], stage.weights, dt, backend=self.backend)

    def limit(self, length: Tensor) -> Tensor:
        return length.clamp(self.min_step, self.max_step)


def _chooser(is_kept: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what takes the rows of its first argument [n, ...] where the flag [n] is set, else those of its second."""
    # Reading a flag back costs nothing on a CPU, and the usual step, that all items take, then costs no pass.
    if is_kept.device.type == "cpu" and not torch.compiler.is_compiling() and bool(is_kept.all()):
        return lambda new, old: new.to(torch.promote_types(new.dtype, old.dtype))
    return lambda new, old: torch.where(is_kept.reshape(-1, *([1] * (new.ndim - 1))), new, old)


def _is_finite(z: Tensor) -> Tensor:
    """Say of which items [n, ...] all numbers are finite; [n]."""
    finite = z.isfinite()
    return finite.flatten(1).all(1) if z.ndim > 1 else finite


def _assemble(finished: list[Rows], outputs: Outputs | None) -> AdaptiveSolution:
    order = torch.cat([rows.index for rows in finished]).argsort()

    def gather(name: str) -> Tensor:
        return joined([getattr(rows, name) for rows in finished])[order]

    state, status = gather("z"), gather("status")
    # A step can leave the range of the dtype although its error is within a tolerance that has left it as well.
    is_lost = (status == int(SolveStatus.SUCCESS)) & ~_is_finite(state)
    return AdaptiveSolution(
        state=state,
        trajectory=None if outputs is None else outputs.trajectory(),
        t_reached=gather("t"),
        nfe=gather("nfe"),
        n_accepted=gather("n_accepted"),
        n_rejected=gather("n_rejected"),
        item_status=torch.where(is_lost, int(SolveStatus.NON_FINITE), status),
    )
