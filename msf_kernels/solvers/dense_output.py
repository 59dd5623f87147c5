"""States between the ends of an accepted step, from the slopes that the step has already taken."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from msf_kernels.rk_combine import rk_combine
from msf_kernels.solvers.tableau import Tableau


def has_dense_output(tableau: Tableau) -> bool:
    """Whether interpolation keeps the method's accuracy without further evaluations."""
    return tableau.is_first_same_as_last or tableau.order <= 2


def interpolate(
    tableau: Tableau,
    z_old: Tensor,
    z_new: Tensor,
    slopes: Sequence[Tensor],
    dt: Tensor,
    theta: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Return the states at the shares `theta` of their steps.

    A quadratic through both states and the first slope; with the slope at the end, the cubic Hermite polynomial; with
    midpoint weights also the quartic through the middle.

    Args:
        tableau: Method of the step.
        z_old: [m, ...] states at the start of the step.
        z_new: [m, ...] states at its end.
        slopes: The step's slopes, each [m, ...].
        dt: [m] signed step.
        theta: [m] in [0, 1].
        backend: Backend of `rk_combine`.

    Returns:
        [m, ...] in the dtype of `z_old`; exactly `z_new` where theta is 1.

    Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, section II.6.
    """
    work = torch.float64 if z_old.dtype == torch.float64 else torch.float32
    per_item = (-1, *([1] * (z_old.ndim - 1)))
    start, end = z_old.to(work), z_new.to(work)
    step, share = dt.to(work).reshape(per_item), theta.to(work).reshape(per_item)
    first = step * slopes[0].to(work)
    if not tableau.is_first_same_as_last:
        between = start + share * first + share.square() * (end - start - first)
    else:
        last = step * slopes[-1].to(work)
        rest = share * (share - 1.0)
        chord = end - start
        between = start + share * chord + rest * ((1.0 - 2.0 * share) * chord + (share - 1.0) * first + share * last)
        if tableau.midpoint_weights is not None:
            middle = rk_combine(z_old, slopes, tableau.midpoint_weights, dt, backend=backend).to(work)
            cubic_middle = 0.5 * (start + end) + 0.125 * (first - last)
            between = between + 16.0 * rest.square() * (middle - cubic_middle)
    return torch.where(share == 1.0, end, between).to(z_old.dtype)
