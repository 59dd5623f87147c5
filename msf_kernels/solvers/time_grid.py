"""Time grids: where a solve starts, steps and ends.

A shared grid is a tuple of Python floats. It lives on the host, so a step never waits for a device to learn how long
it is; and the velocity field receives its times as Python floats, so they are never rounded to the state's dtype.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TypeAlias

import torch
from torch import Tensor

from msf_kernels._derivatives import any_transformed, has_derivative, is_vectorised
from msf_kernels.checks import as_float, as_int, as_tensor

TimeGridLike: TypeAlias = "Sequence[float] | Tensor"

# A last step shorter than this share of the others is rounding, not a step: 1 / 0.1 is ten steps, not eleven.
_SLIVER = 1e-6


def uniform_grid(n_steps: int, start: float = 0.0, end: float = 1.0) -> tuple[float, ...]:
    """Return `n_steps + 1` equally spaced times, both ends exact.

    `t_i = start + (end - start) i / n_steps`.

    Args:
        n_steps: Number of steps; >= 1.
        start: First time.
        end: Last time; before `start` for a solve that runs backward.

    Returns:
        Python floats, length n_steps + 1.

    Raises:
        TypeError: `n_steps` is not an integer, or an end is not a number.
        ValueError: `n_steps` < 1, or the ends are equal or not finite.
    """
    n_steps, start, end = _check_steps(n_steps), *_check_ends(start, end)
    inner = (start + (end - start) * (i / n_steps) for i in range(1, n_steps))
    return (start, *inner, end)


def cubic_grid(n_steps: int, start: float = 0.0, end: float = 1.0) -> tuple[float, ...]:
    """Return `n_steps + 1` times that are dense at t = 1, both ends exact.

    `t_i = 1 - u_i^3`, with u equally spaced from `cbrt(1 - start)` to `cbrt(1 - end)`. From 1 to 0 that is
    `t_i = 1 - (i / n_steps)^3`: the first of 16 steps is 0.0002 long, the last 0.18.

    Where a stream of P values carries one of a few codes and is noise at t = 1, it is decided which while
    `(1 - t)^2 P / t^2` is about 1, so at `1 - t` of about `P^-1/2`. A uniform step jumps over that, and what it takes
    for the answer is the one that is likelier by a little: votes over noise draws are over-confident.

    Args:
        n_steps: Number of steps; >= 1. For one step it is `uniform_grid`.
        start: First time.
        end: Last time; before `start` for a solve that runs backward.

    Returns:
        Python floats, length n_steps + 1.

    Raises:
        TypeError: `n_steps` is not an integer, or an end is not a number.
        ValueError: `n_steps` < 1, or so many that a step is too short for a double (more than 10^5 from 1 to 0); or the
            ends are equal or not finite.

    Numerics:
        An adaptive solve chooses its own steps: there a grid can only say at which times the state is wanted.

    Source:
        The exact field of Gaussian-mixture data (`msf_kernels.testing.GaussianMixtureFlow`), on which uniform and cubic
        steps were compared: docs/decisions/0032-recipes.md.
    """
    n_steps, start, end = _check_steps(n_steps), *_check_ends(start, end)
    first, last = math.cbrt(1 - start), math.cbrt(1 - end)
    inner = (1 - (first + (last - first) * (i / n_steps)) ** 3 for i in range(1, n_steps))
    grid = (start, *inner, end)
    if any((after - before) * (end - start) <= 0 for before, after in itertools.pairwise(grid)):
        raise ValueError(
            f"n_steps must be smaller, so that every cubic step from {start} to {end} has a length; got {n_steps}"
        )
    return grid


def grid_from_step_size(step_size: float, start: float = 0.0, end: float = 1.0) -> tuple[float, ...]:
    """Return the times `start, start +- step_size, ...` and `end`, whatever the step size.

    The last step is shorter when the step size does not divide the interval; step 0.3 from 0 to 1 gives
    0, 0.3, 0.6, 0.9, 1.

    Args:
        step_size: Length of a step; > 0 in both directions of time.
        start: First time.
        end: Last time; before `start` for a solve that runs backward.

    Returns:
        Python floats, at least two.

    Raises:
        TypeError: `step_size` or an end is not a number.
        ValueError: `step_size` is not finite and > 0, or the ends are equal or not finite.
    """
    step_size = as_float("step_size", step_size)
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be finite and > 0, also backward in time; got {step_size}")
    start, end = _check_ends(start, end)
    n_steps = max(1, math.ceil(abs(end - start) / step_size - _SLIVER))
    step = math.copysign(step_size, end - start)
    return (start, *(start + i * step for i in range(1, n_steps)), end)


def check_time_grid(time_grid: TimeGridLike) -> tuple[float, ...] | Tensor:
    """Return a checked grid: a tuple of floats when it is shared, the tensor itself when it is per sample.

    Args:
        time_grid: [S + 1] numbers, tensor or array shared by all items (a tensor's values are read to the host, once),
            or [N, S + 1] floating tensor or array with one grid per item. Strictly monotone and finite, S >= 1; items
            may run in different directions.

    Returns:
        The shared grid as Python floats, or the per-sample grid.

    Raises:
        TypeError: Not numbers, or a per-sample grid of another dtype than float.
        ValueError: Too short, not finite, not strictly monotone, or of another shape.
        NotImplementedError: A shared grid that a derivative or `torch.func.vmap` follows.

    Numerics: the values of a per-sample grid are checked where that costs no wait for a device, on the CPU and
    outside of tracing; on a device they are taken as they are.
    """
    given = as_tensor(time_grid)
    if not isinstance(given, Tensor):
        if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping, Set)):
            raise TypeError(
                f"time_grid must be a sequence of times, such as uniform_grid(10) for ten steps; got {_shown(given)}"
            )
        return _check_shared([_number(value, i) for i, value in enumerate(given)])
    time_grid = given
    if time_grid.ndim == 1:
        if has_derivative(time_grid) or is_vectorised(time_grid):
            raise NotImplementedError(
                "time_grid [S + 1] is read to the host, which no derivative and no vmap survives: detach it, or give "
                "[N, S + 1], one grid per item"
            )
        return _check_shared([_number(value, i) for i, value in enumerate(time_grid.tolist())])
    if time_grid.ndim != 2 or time_grid.shape[1] < 2:
        raise ValueError(
            f"time_grid must be [S + 1] or [N, S + 1] with both ends of at least one step; got {list(time_grid.shape)}"
        )
    if not time_grid.is_floating_point():
        raise TypeError(f"time_grid must be floating when it is per sample; got {time_grid.dtype}")
    if has_readable_values(time_grid):
        _check_per_sample(time_grid)
    return time_grid


def _check_shared(times: list[float]) -> tuple[float, ...]:
    if len(times) < 2:
        raise ValueError(f"time_grid must hold at least two times, the start and the end; got {len(times)}")
    for i, value in enumerate(times):
        # Comparisons, not math.isfinite: torch.compile traces them for numbers that it keeps symbolic.
        if not -math.inf < value < math.inf:
            raise ValueError(f"time_grid must be finite; got {value} at index {i}")
    sign = times[1] - times[0]
    for i in range(1, len(times)):
        if not (times[i] - times[i - 1]) * sign > 0:
            raise ValueError(
                "time_grid must be strictly increasing or strictly decreasing; "
                f"got {times[i - 1]} followed by {times[i]} at index {i}"
            )
    return tuple(times)


def _check_per_sample(time_grid: Tensor) -> None:
    if not bool(time_grid.isfinite().all()):
        raise ValueError("time_grid must be finite; got a NaN or an infinity")
    steps = time_grid.diff(dim=1)
    is_monotone = ((steps > 0).all(dim=1) | (steps < 0).all(dim=1)).tolist()
    if not all(is_monotone):
        row = is_monotone.index(False)
        raise ValueError(
            "time_grid must be strictly increasing or strictly decreasing for every item; "
            f"item {row} has {time_grid[row].tolist()}"
        )


def has_readable_values(tensor: Tensor) -> bool:
    """Say whether reading a tensor's values costs no wait for a device and breaks no trace."""
    is_plain = type(tensor) in (Tensor, torch.nn.Parameter) and not any_transformed((tensor,))
    return is_plain and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _check_steps(n_steps: int) -> int:
    n_steps = as_int("n_steps", n_steps)
    if n_steps < 1:
        raise ValueError(f"n_steps must be >= 1; got {n_steps}")
    return n_steps


def _check_ends(start: float, end: float) -> tuple[float, float]:
    start, end = as_float("start", start), as_float("end", end)
    if not (-math.inf < start < math.inf and -math.inf < end < math.inf and start != end):
        raise ValueError(f"start and end must be finite and differ; got {start} and {end}")
    return start, end


def _number(value: object, index: int) -> float:
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"time_grid must not require a gradient when it is shared; the time at index {index} does")
    try:
        return as_float("time_grid", value)
    except TypeError:
        raise TypeError(f"time_grid must hold numbers; got {type(value).__name__} at index {index}") from None


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, (int, float)) else type(value).__name__
