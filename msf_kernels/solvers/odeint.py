"""`odeint` with torchdiffeq's calling convention, on this library's solvers."""

from __future__ import annotations

import importlib
import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from msf_kernels._derivatives import has_derivative, is_vectorised
from msf_kernels.checks import as_float, as_int, as_tensor, require_bool
from msf_kernels.fixed_order import rms_norm
from msf_kernels.solvers.adaptive import integrate_adaptive
from msf_kernels.solvers.adaptive_items import refuse_vmap
from msf_kernels.solvers.field_calls import edited_text, require_velocity, version_of
from msf_kernels.solvers.integrate import integrate
from msf_kernels.solvers.step_control import PIDController
from msf_kernels.solvers.tableau import (
    BOSH3,
    DOPRI5,
    EULER,
    FEHLBERG2,
    HEUN,
    HEUN3,
    HEUN_EULER,
    MIDPOINT,
    RK4,
    RK4_38,
)
from msf_kernels.solvers.time_grid import check_time_grid, grid_from_step_size, has_readable_values

State: TypeAlias = "Tensor | tuple[Tensor, ...]"

# torchdiffeq's names first, then this library's own where they differ.
FIXED_METHODS = {
    "euler": EULER,
    "midpoint": MIDPOINT,
    "heun2": HEUN,
    "heun3": HEUN3,
    "rk4": RK4_38,
    "heun": HEUN,
    "rk4_38": RK4_38,
    "rk4_classic": RK4,
}
ADAPTIVE_METHODS = {
    "adaptive_heun": HEUN_EULER,
    "fehlberg2": FEHLBERG2,
    "bosh3": BOSH3,
    "heun_euler": HEUN_EULER,
    "dopri5": DOPRI5,
}
# Methods of torchdiffeq, in any of its versions, that are handed to it.
DELEGATED_METHODS = (
    "dopri8",
    "tsit5",
    "explicit_adams",
    "implicit_adams",
    "fixed_adams",
    "scipy_solver",
    "implicit_euler",
    "implicit_midpoint",
    "trapezoid",
    "radauIIA3",
    "radauIIA5",
    "gl4",
    "gl6",
    "sdirk2",
    "trbdf2",
)
_CALLBACKS = ("callback_step", "callback_accept_step", "callback_reject_step")


def odeint(
    func: Callable[[Any, Any], Any],
    y0: State,
    t: Tensor,
    *,
    rtol: float | Tensor | Sequence[float | Tensor] = 1e-7,
    atol: float | Tensor | Sequence[float | Tensor] = 1e-9,
    method: str | None = None,
    options: Mapping[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """Solve `dy/dt = func(t, y)`, `y(t[0]) = y0`, and return y at every time of `t`.

    A drop-in for `torchdiffeq.odeint`: change the import. As there, an adaptive method treats the whole state as one
    system with one step; `options={"per_sample": True}` gives every row of `y0` its own steps instead.

    Args:
        func: Callable `(t, y) -> dy`; t is a 0-dim tensor in the dtype of y, [N] with `per_sample`; y and dy are
            tensors like `y0`, or tuples of them; dy may have another floating dtype. It must not change y in place; it
            may return y, or the same buffer every time.
        y0: Floating tensor or array of any shape, or a tuple of them; finite.
        t: [T] floating tensor or array; strictly increasing or decreasing; its first entry is the time of `y0`.
        rtol: Relative tolerance of adaptive methods: a number, a tensor, or one of them per member of a tuple state.
        atol: Absolute tolerance; likewise.
        method: Fixed step: `euler`, `midpoint`, `heun2` (or `heun`), `heun3`, `rk4` (the 3/8 rule, as in torchdiffeq;
            `"rk4"` is the classic method everywhere else in this library), and without doubt `rk4_38` and
            `rk4_classic`. Adaptive: `adaptive_heun` (or `heun_euler`), `fehlberg2`, `bosh3`, `dopri5` (default).
            torchdiffeq's others are handed to it when it is installed.
        options: Fixed step: `step_size`, or `grid_constructor(func, y0, t)`; without them `t` is the grid; outputs
            between grid points are interpolated linearly. Adaptive: `first_step`, `min_step`, `max_step`, `safety`,
            `ifactor`, `dfactor`, `max_num_steps`, `norm`, `dtype` (of time), `per_sample`, and with it
            `drop_finished` (see `integrate_adaptive`). `step_t`, `jump_t`, `perturb` and `interp="cubic"` are handed
            to torchdiffeq.
        event_fn: Handed to torchdiffeq, which then returns the event time and the solution.

    Returns:
        [T, ...] states, time first, `y0` at index 0; a tuple of them for a tuple state; dtype of `y0`.

    Raises:
        TypeError: Wrong Python types or dtypes.
        ValueError: `t` is not monotone, an unknown method, wrong shapes or ranges, NaN or infinity in `y0` (fixed-step
            methods look for them on the CPU only, where that costs no wait), `func` changed y in place.
        RuntimeError: An adaptive solve could not be finished; the text says what to change. (`integrate_adaptive`
            returns the last state instead.)
        NotImplementedError: Forward mode with respect to `t`; an adaptive method inside `torch.func.vmap`.
        ImportError: Something is asked for that only torchdiffeq has, and it is not installed.

    Numerics: as `integrate` and `integrate_adaptive`. Times are read to the host once; adaptive methods keep them in
    float64 unless `dtype` says otherwise. Derivatives of any order and mode flow to `y0` and whatever `func` uses; a
    `t` that requires a gradient, a complex state, or a `func` with torchdiffeq's callbacks is handed to torchdiffeq.
    `max_num_steps` limits the whole solve. `adaptive_heun` evaluates its first slope at the accepted state.
    An adaptive solve has one error norm over the whole state, as torchdiffeq has: a row's steps, and so its last
    digits, then depend on the other rows. With `per_sample` they do not: a row has the same bits alone as in any batch.
    Results do not share memory with `y0` or with what `func` returns, and results of `func` that share memory with each
    other are told apart (see `integrate`).
    """
    chosen = "dopri5" if method is None else method
    known = (*FIXED_METHODS, *ADAPTIVE_METHODS, *DELEGATED_METHODS)
    if chosen not in known:
        raise ValueError(f"method must be one of {', '.join(known)}; got {chosen!r}")
    if not callable(func):
        raise TypeError(f"func must be callable as func(t, y); got {type(func).__name__}")
    if not isinstance(options, (Mapping, type(None))):
        raise TypeError(f"options must be a mapping of names to values; got {type(options).__name__}")
    remaining = dict(options or {})
    y0 = cast(State, tuple(map(as_tensor, y0)) if isinstance(y0, tuple) else as_tensor(y0))
    t = cast(Tensor, as_tensor(t))
    feature = _only_in_torchdiffeq(func, y0, t, chosen, remaining, event_fn)
    if feature is not None:
        solve = _torchdiffeq(feature)
        return solve(func, y0, t, rtol=rtol, atol=atol, method=method, options=options, event_fn=event_fn)

    times = _check_times(t)
    packing = _Packing(y0)
    state = packing.pack(y0)
    if len(times) == 1:
        return packing.unpack(state[None].clone(), leading=1)
    if chosen in ADAPTIVE_METHODS:
        refuse_vmap("y0", state)
    if chosen in ADAPTIVE_METHODS or has_readable_values(state):
        packing.require_finite(y0)
    if chosen in FIXED_METHODS:
        remaining.pop("norm", None)
        solution = _solve_fixed(packing.field(func), func, y0, state, t, times, chosen, remaining)
    else:
        solution = _solve_adaptive(func, packing, state, times, chosen, rtol, atol, remaining)
    return packing.unpack(solution, leading=1)


class _Packing:
    """Turns a tuple state into one vector and back; a tensor state passes as it is."""

    def __init__(self, y0: State) -> None:
        if not isinstance(y0, (Tensor, tuple)):
            raise TypeError(f"y0 must be a tensor or a tuple of tensors; got {type(y0).__name__}")
        members = y0 if isinstance(y0, tuple) else (y0,)
        if not members:
            raise ValueError("y0 must hold at least one tensor; got an empty tuple")
        for member in members:
            if not isinstance(member, Tensor) or not member.is_floating_point():
                got = member.dtype if isinstance(member, Tensor) else type(member).__name__
                raise TypeError(f"y0 must hold floating tensors; got {got}")
            if member.device != members[0].device:
                raise ValueError(f"y0 must be on one device; got {members[0].device} and {member.device}")
        self.shapes = [member.shape for member in members] if isinstance(y0, tuple) else None

    def pack(self, y: State) -> Tensor:
        if isinstance(y, Tensor):
            return y
        return torch.cat([member.reshape(-1) for member in y])

    def unpack(self, y: Tensor, leading: int = 0) -> State:
        """Undo `pack` behind the given number of leading axes."""
        if self.shapes is None:
            return y
        parts = torch.split(y, [shape.numel() for shape in self.shapes], dim=leading)
        return tuple(part.reshape((*y.shape[:leading], *shape)) for part, shape in zip(parts, self.shapes, strict=True))

    def require_finite(self, y0: State) -> None:
        for i, member in enumerate(y0 if isinstance(y0, tuple) else (y0,)):
            if not bool((is_finite := member.isfinite()).all()):
                place = (~is_finite).nonzero()[0].tolist()
                name = "y0" if self.shapes is None else f"y0[{i}]"
                raise ValueError(f"{name} must be finite; got {member[tuple(place)].item()} at index {place}")

    def evaluate(self, func: Callable[[Any, Any], Any], time: Tensor, z: Tensor) -> Tensor:
        """Return the packed derivative at the packed state z; errors speak of `func` and y."""
        version = version_of(z)
        derivative = func(time, self.unpack(z))
        if version_of(z) != version:
            raise ValueError(edited_text("func", "y"))
        if self.shapes is None:
            return require_velocity(derivative, z, "func", "y0")
        if not isinstance(derivative, (tuple, list)) or len(derivative) != len(self.shapes):
            got = type(derivative).__name__
            if isinstance(derivative, (tuple, list)):
                got += f" of {len(derivative)}"
            raise TypeError(f"func must return a tuple of {len(self.shapes)} tensors, like y0; got {got}")
        members = self.unpack(z)
        for i, (member, y) in enumerate(zip(derivative, members, strict=True)):
            require_velocity(member, y, f"func's result {i}", f"y0[{i}]")
        return self.pack(tuple(derivative))

    def field(self, func: Callable[[Any, Any], Any]) -> Callable[[Tensor, float], Tensor]:
        """Return `func` as a velocity field of the packed state on a shared grid."""

        def velocity_field(z: Tensor, time: float) -> Tensor:
            return self.evaluate(func, z.new_full((), time), z)

        return velocity_field

    def tolerance(self, name: str, value: Any) -> float | Tensor:
        value = as_tensor(value) if getattr(value, "ndim", 0) else value
        if isinstance(value, Tensor) and (value.ndim == 0 or self.shapes is None):
            return value.detach()
        if isinstance(value, (int, float)) or getattr(value, "ndim", None) == 0:
            return as_float(name, value)
        if self.shapes is None:
            raise TypeError(f"{name} must be a number or a tensor for a tensor state; got {type(value).__name__}")
        if not isinstance(value, Iterable) or isinstance(value, str):
            raise TypeError(f"{name} must be a number, a tensor, or one per member of y0; got {type(value).__name__}")
        members = list(value)
        if len(members) != len(self.shapes):
            raise ValueError(f"{name} must have one entry per member of y0, {len(self.shapes)}; got {len(members)}")
        return torch.cat(
            [
                torch.as_tensor(member if isinstance(member, Tensor) else as_float(name, member))
                .detach()
                .reshape(-1)
                .expand(shape.numel())
                for member, shape in zip(members, self.shapes, strict=True)
            ]
        )

    def norm(self, chosen: Callable[[Any], Any] | None) -> Callable[[Tensor], Tensor]:
        """Return the norm of a packed scaled error [1, ...]: the caller's own, or the largest RMS of any member."""
        if chosen is None and self.shapes is None:
            return rms_norm

        def of_state(scaled: Tensor) -> Tensor:
            y = self.unpack(scaled[0])
            if chosen is not None:
                return torch.as_tensor(chosen(y), dtype=scaled.dtype, device=scaled.device).abs().reshape(1)
            return torch.cat([rms_norm(member.reshape(1, -1)) for member in y]).amax(dim=0, keepdim=True)

        return of_state


def _solve_fixed(
    field: Callable[[Tensor, float], Tensor],
    func: Callable[[Any, Any], Any],
    y0: State,
    state: Tensor,
    t: Tensor,
    times: list[float],
    method: str,
    options: dict[str, Any],
) -> Tensor:
    step_size = options.pop("step_size", None)
    constructor = options.pop("grid_constructor", None)
    options.pop("interp", None)
    options.pop("perturb", None)
    _warn_of_unused(method, options)
    tableau = FIXED_METHODS[method]
    if step_size is not None and constructor is not None:
        raise ValueError("options must hold step_size or grid_constructor, not both")
    if step_size is None and constructor is None:
        trajectory = integrate(field, state, times, tableau, return_trajectory=True).trajectory
        assert trajectory is not None
        return trajectory
    if step_size is not None:
        step_size = as_float("options['step_size']", step_size)
        if not 0 < step_size < math.inf:
            raise ValueError(f"options['step_size'] must be finite and > 0, also backward in time; got {step_size}")
        grid = grid_from_step_size(step_size, times[0], times[-1])
    elif not callable(constructor):
        raise TypeError(f"options['grid_constructor'] must be callable; got {type(constructor).__name__}")
    else:
        try:
            built = check_time_grid(constructor(func, y0, t))
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("time_grid", "the grid of options['grid_constructor']")) from error
        if isinstance(built, Tensor) or built[0] != times[0] or built[-1] != times[-1]:
            raise ValueError("grid_constructor must return [S + 1] times that start and end where t does")
        grid = built

    sign = math.copysign(1.0, grid[-1] - grid[0])
    ascending = [sign * value for value in grid]
    outputs, place, before = [state], 0, state
    for time in times[1:]:
        after = bisect_left(ascending, sign * time)
        if after > place + 1:
            state = integrate(field, state, grid[place:after], tableau).state
        if after > place:
            before, place = state, after
            state = integrate(field, state, grid[after - 1 : after + 1], tableau).state
        share = (time - grid[place - 1]) / (grid[place] - grid[place - 1])
        outputs.append(state if time == grid[place] else torch.lerp(before, state, share))
    return torch.stack(outputs)


def _solve_adaptive(
    func: Callable[[Any, Any], Any],
    packing: _Packing,
    state: Tensor,
    times: list[float],
    method: str,
    rtol: Any,
    atol: Any,
    options: dict[str, Any],
) -> Tensor:
    is_per_sample = options.pop("per_sample", False)
    require_bool("options['per_sample']", is_per_sample)
    drop_finished = options.pop("drop_finished", False) if is_per_sample else True
    require_bool("options['drop_finished']", drop_finished)
    custom_norm = options.pop("norm", None)
    if custom_norm is not None and not callable(custom_norm):
        raise TypeError(f"options['norm'] must be callable; got {type(custom_norm).__name__}")
    time_dtype = options.pop("dtype", torch.float32 if state.device.type == "mps" else torch.float64)
    if time_dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TypeError(f"options['dtype'] must be a floating dtype; got {time_dtype}")

    def number(name: str, default: float | None) -> Any:
        value = options.pop(name, default)
        return None if value is None else as_float(f"options[{name!r}]", value)

    try:
        controller = PIDController(
            safety=number("safety", 0.9), min_factor=number("dfactor", 0.2), max_factor=number("ifactor", 10.0)
        )
    except ValueError as error:
        text = str(error).replace("min_factor", "options['dfactor']").replace("max_factor", "options['ifactor']")
        raise ValueError(text) from None
    first_step, min_step, max_step = number("first_step", None), number("min_step", 0.0), number("max_step", None)
    first_step, max_step = (None if value == math.inf else value for value in (first_step, max_step))
    max_steps = as_int("options['max_num_steps']", options.pop("max_num_steps", 2**31 - 1))
    _warn_of_unused(method, options)
    if is_per_sample:
        if packing.shapes is not None:
            raise ValueError("options['per_sample'] must be False for a tuple state; concatenate it along axis 1")
        rows, norm = state, custom_norm or rms_norm

        def field(z: Tensor, time: Tensor) -> Tensor:
            return packing.evaluate(func, time.to(z.dtype, copy=True), z)

    else:
        rows, norm = state[None], packing.norm(custom_norm)

        def field(z: Tensor, time: Tensor) -> Tensor:
            return packing.evaluate(func, time[0].to(z.dtype, copy=True), z[0])[None]

    grid = torch.tensor(times, dtype=time_dtype, device=state.device)
    solution = integrate_adaptive(
        field,
        rows,
        grid[0],
        grid[-1],
        ADAPTIVE_METHODS[method],
        rtol=packing.tolerance("rtol", rtol),
        atol=packing.tolerance("atol", atol),
        controller=controller,
        output_times=grid,
        drop_finished=drop_finished,
        norm=norm,
        first_step=first_step,
        min_step=min_step,
        max_step=max_step,
        max_steps=max_steps,
    )
    if not solution.status.is_success:
        reached = solution.t_reached[solution.item_status.argmax()].item()
        raise RuntimeError(
            f"odeint stopped at t = {reached}: {solution.status.explanation} (here max_steps is "
            "options['max_num_steps']; integrate_adaptive returns the last state instead of raising)"
        )
    assert solution.trajectory is not None
    return solution.trajectory if is_per_sample else solution.trajectory.squeeze(1)


def _check_times(t: Tensor) -> list[float]:
    if not isinstance(t, Tensor):
        raise TypeError(f"t must be a floating tensor [T]; got {type(t).__name__}")
    if not t.is_floating_point():
        raise TypeError(f"t must be a floating tensor [T]; got {t.dtype}")
    if t.ndim != 1 or t.shape[0] == 0:
        raise ValueError(f"t must be [T] with at least one time; got shape {list(t.shape)}")
    if has_derivative(t) or is_vectorised(t):
        raise NotImplementedError(
            "t is read to the host, which no forward mode and no vmap survives: integrate takes times [N, T] that they "
            "follow"
        )
    times: list[float] = t.detach().tolist()
    if len(times) > 1:
        try:
            check_time_grid(times)
        except ValueError as error:
            raise ValueError(str(error).replace("time_grid", "t")) from None
    return times


def _only_in_torchdiffeq(
    func: object, y0: object, t: object, method: str, options: Mapping[str, Any], event_fn: object
) -> str | None:
    """Name what is asked for that only torchdiffeq has, or None."""
    if method in DELEGATED_METHODS:
        return f"method {method!r}"
    if event_fn is not None:
        return "event handling (event_fn)"
    for name in ("step_t", "jump_t"):
        if options.get(name) is not None:
            return f"options[{name!r}]"
    if options.get("perturb"):
        return "options['perturb']"
    if options.get("interp", "linear") != "linear":
        return f"options['interp'] = {options['interp']!r}"
    if isinstance(t, Tensor) and t.requires_grad:
        return "a gradient with respect to t"
    members = y0 if isinstance(y0, tuple) else (y0,)
    if any(isinstance(member, Tensor) and member.is_complex() for member in members):
        return "a complex state"
    for name in _CALLBACKS:
        if hasattr(func, name):
            return f"func.{name}"
    return None


def _torchdiffeq(feature: str) -> Callable[..., Any]:
    try:
        solve: Callable[..., Any] = importlib.import_module("torchdiffeq").odeint
    except ImportError:
        own = ", ".join((*FIXED_METHODS, *ADAPTIVE_METHODS))
        raise ImportError(
            f"odeint hands {feature} to torchdiffeq, which is not installed: install it with `pip install "
            f"torchdiffeq`, or stay with the methods {own}"
        ) from None
    return solve


def _warn_of_unused(method: str, options: Mapping[str, Any]) -> None:
    if options:
        warnings.warn(f"odeint: method {method!r} does not use options {sorted(options)}", stacklevel=4)
