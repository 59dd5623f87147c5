"""The items of an adaptive solve: what is known of each, and how they start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from msf_kernels._derivatives import has_derivative, is_vectorised
from msf_kernels.checks import as_float, as_tensor
from msf_kernels.solvers.integrate import checked_start


@dataclass(frozen=True)
class Rows:
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

    def select(self, rows: Tensor) -> Rows:
        """Return the items at the given places."""
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "context"}
        return Rows(**picked, context=tuple(tensor[rows] for tensor in self.context))


@dataclass(frozen=True)
class Trial:
    """One step of every item, not yet judged."""

    z: Tensor
    t: Tensor
    dt: Tensor
    slopes: list[Tensor]
    reaches_end: Tensor


def start_rows(z_start: object, t_start: float | Tensor, t_end: float | Tensor, context: Sequence[Tensor]) -> Rows:
    """Return the items of a solve, before any evaluation."""
    z_start = checked_start(z_start)
    if z_start.ndim == 0:
        raise ValueError("z_start must be [N, ...], one item per row; got a tensor without axes")
    n_items = z_start.shape[0]
    refuse_vmap("z_start", z_start)
    for i, tensor in enumerate(context):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"context must hold tensors [N, ...]; got {type(tensor).__name__} at index {i}")
        refuse_vmap(f"context[{i}]", tensor)
        if tensor.ndim == 0 or tensor.shape[0] != n_items:
            raise ValueError(f"context[{i}] must be [N, ...] with N = {n_items}; got {list(tensor.shape)}")
    t_start, t_end = _as_time("t_start", t_start), _as_time("t_end", t_end)
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
    return Rows(
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


def _as_time(name: str, value: object) -> float | Tensor:
    value = as_tensor(value) if getattr(value, "ndim", 0) else value
    return value if isinstance(value, Tensor) else as_float(name, value)


def _check_time(name: str, value: float | Tensor, z_start: Tensor, dtype: torch.dtype) -> Tensor:
    n_items = z_start.shape[0]
    if not isinstance(value, Tensor):
        return torch.full((n_items,), value, dtype=dtype, device=z_start.device)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a number or a floating tensor [N]; got {value.dtype}")
    if has_derivative(value):
        raise ValueError(f"{name} must not require a gradient: adaptive steps are constants of the solve")
    refuse_vmap(name, value)
    if value.ndim != 0 and value.shape != (n_items,):
        raise ValueError(f"{name} must be a number or [N] with N = {n_items}; got {list(value.shape)}")
    return value.to(device=z_start.device, dtype=dtype).expand(n_items)


def refuse_vmap(name: str, value: Tensor) -> None:
    """Refuse a tensor that `torch.func.vmap` vectorises: it hides the values that steps follow from.

    Raises:
        NotImplementedError: It is vectorised.
    """
    if is_vectorised(value):
        raise NotImplementedError(
            f"{name} must not be vectorised by torch.func.vmap: adaptive steps follow from values, which it hides; put "
            'the items on the first axis, or use integrate, with backend="reference"'
        )


def check_tolerance(name: str, value: object, z_start: Tensor) -> float | Tensor:
    """Return a checked tolerance: a number, or a tensor that broadcasts over the axes of one item."""
    value = as_tensor(value) if getattr(value, "ndim", 0) else value
    if not isinstance(value, Tensor):
        value = as_float(name, value)
    if not isinstance(value, Tensor):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and >= 0; got {value}")
        return value
    if not (value.is_floating_point() or value.dtype in (torch.int64, torch.int32)):
        raise TypeError(f"{name} must hold real numbers; got {value.dtype}")
    if has_derivative(value):
        raise ValueError(f"{name} must not require a gradient: steps are constants of the solve")
    item = z_start.shape[1:]
    if value.ndim > len(item) or any(v not in (1, n) for v, n in zip(value.shape[::-1], item[::-1], strict=False)):
        raise ValueError(f"{name} must broadcast over one item, {list(item)}; got {list(value.shape)}")
    if not bool(((value >= 0) & value.isfinite()).all()):
        raise ValueError(f"{name} must be finite and >= 0 everywhere")
    return value.to(z_start.device)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Return the parts one after the other on the first axis."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
