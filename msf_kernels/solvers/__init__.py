"""ODE solvers for velocity fields: fixed step, adaptive per sample, and a torchdiffeq-shaped `odeint`."""

import warnings
from typing import Any

from msf_kernels.solvers.adaptive import integrate_adaptive
from msf_kernels.solvers.integrate import integrate
from msf_kernels.solvers.odeint import odeint
from msf_kernels.solvers.solution import AdaptiveSolution, Solution, SolveStatus
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
    Tableau,
    get_tableau,
)
from msf_kernels.solvers.time_grid import check_time_grid, cubic_grid, grid_from_step_size, uniform_grid

__all__ = [
    "BOSH3",
    "DOPRI5",
    "EULER",
    "FEHLBERG2",
    "HEUN",
    "HEUN3",
    "HEUN_EULER",
    "MIDPOINT",
    "RK4",
    "RK4_38",
    "AdaptiveSolution",
    "PIDController",
    "Solution",
    "SolveStatus",
    "Tableau",
    "check_time_grid",
    "cubic_grid",
    "get_tableau",
    "grid_from_step_size",
    "integrate",
    "integrate_adaptive",
    "odeint",
    "uniform_grid",
]


def __getattr__(name: str) -> Any:
    """Return a name that had a meaning, for one more release."""
    if name == "Workspace":
        from msf_kernels.solvers.workspace import WITHOUT_EFFECT, Workspace

        warnings.warn(WITHOUT_EFFECT, DeprecationWarning, stacklevel=2)
        return Workspace
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
