"""States at output times, from the steps that pass them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import torch
from torch import Tensor

from msf_kernels.checks import as_float, as_tensor
from msf_kernels.solvers.adaptive_items import Rows, Trial, joined
from msf_kernels.solvers.dense_output import interpolate
from msf_kernels.solvers.tableau import Tableau


class Outputs:
    """States at output times, collected as steps pass them."""

    def __init__(self, times: object, rows: Rows, tableau: Tableau, backend: str) -> None:
        """Check the times; those at the start have their states already."""
        n_items = rows.index.shape[0]
        grid = _as_grid(times).to(rows.t)
        if grid.ndim == 1:
            grid = grid.expand(n_items, -1)
        if grid.ndim != 2 or grid.shape[0] != n_items:
            raise ValueError(f"output_times must be [T] or [N, T] with N = {n_items}; got {list(grid.shape)}")
        share = (grid - rows.t[:, None]) / (rows.t_end - rows.t)[:, None]
        if not bool(((share >= 0.0) & (share <= 1.0)).all()):
            raise ValueError("output_times must lie between t_start and t_end of every item")
        self.times = grid
        self.tableau = tableau
        self.backend = backend
        self.start = rows.z
        at_start = (grid == rows.t[:, None]).nonzero()
        self.places = [at_start[:, 0] * grid.shape[1] + at_start[:, 1]]
        self.states = [rows.z[at_start[:, 0]]]

    def record(self, rows: Rows, trial: Trial, is_kept: Tensor) -> None:
        """Take the states at the times that a kept step passes."""
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
                backend=self.backend,
            )
        )

    def trajectory(self) -> Tensor:
        """Return the states [T, N, ...]; NaN where an item did not get."""
        n_items, n_times = self.times.shape
        if sum(places.shape[0] for places in self.places) == n_items * n_times:
            states = joined(self.states)[joined(self.places).argsort()]
            return states.reshape(n_items, n_times, *self.start.shape[1:]).transpose(0, 1)
        missing = self.start.new_full((n_items * n_times, *self.start.shape[1:]), torch.nan)
        filled = missing.index_copy(0, joined(self.places), joined(self.states))
        return filled.reshape(n_items, n_times, *self.start.shape[1:]).transpose(0, 1)


def _as_grid(times: object) -> Tensor:
    given = as_tensor(times)
    if isinstance(given, Tensor):
        if given.requires_grad:
            raise ValueError("output_times must not require a gradient: adaptive steps are constants of the solve")
        return given
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping, Set)):
        raise TypeError(f"output_times must be a sequence of numbers; got {type(given).__name__}")
    return torch.tensor([as_float("output_times", time) for time in given], dtype=torch.float64)
