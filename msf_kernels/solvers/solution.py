"""What a solve returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class SolveStatus(IntEnum):
    """How a solve ended. `explanation` says what to change; larger values are worse."""

    SUCCESS = 0
    STEP_LIMIT = 1
    STEP_UNDERFLOW = 2
    NON_FINITE = 3

    @property
    def is_success(self) -> bool:
        """Whether the end of the time interval was reached."""
        return self is SolveStatus.SUCCESS

    @property
    def explanation(self) -> str:
        """One sentence: what happened, and what to change."""
        return _EXPLANATIONS[self]


_EXPLANATIONS = {
    SolveStatus.SUCCESS: "the end of the time interval was reached",
    SolveStatus.STEP_LIMIT: (
        "the step limit was reached before the end of the time interval: raise max_steps, loosen rtol and atol, or "
        "take a method of lower order if the problem is stiff"
    ),
    SolveStatus.STEP_UNDERFLOW: (
        "the step became too small to advance time in its dtype: loosen rtol and atol, solve in float64, or stop "
        "before a singularity of the velocity field"
    ),
    SolveStatus.NON_FINITE: (
        "the velocity field returned NaN or infinity however small the step: check its output at the last time, and "
        "whether the state left the range of its dtype"
    ),
}


@dataclass(frozen=True)
class Solution:
    """End of a fixed-step solve.

    Args:
        state: [N, ...] state at the last time of the grid; dtype and memory format of the start.
        trajectory: [S + 1, N, ...] states at all times of the grid, the start first; None unless asked for.
        nfe: Number of evaluations of the velocity field, counted.
        status: Always a success: a fixed-step solve reaches its end, and its values are not read back to be judged.
    """

    state: Tensor
    trajectory: Tensor | None
    nfe: int
    status: SolveStatus


@dataclass(frozen=True)
class AdaptiveSolution:
    """End of an adaptive solve in which every item has its own steps.

    Args:
        state: [N, ...] last accepted state of each item; at its `t_end` exactly when its status is a success.
        trajectory: [T, N, ...] states at the output times; NaN where an item did not get there; None unless asked
            for.
        t_reached: [N] time of `state`.
        nfe: [N] int64; evaluations made on each item, counted.
        n_accepted: [N] int64; accepted steps.
        n_rejected: [N] int64; rejected steps.
        item_status: [N] int64; values of `SolveStatus`.
    """

    state: Tensor
    trajectory: Tensor | None
    t_reached: Tensor
    nfe: Tensor
    n_accepted: Tensor
    n_rejected: Tensor
    item_status: Tensor

    @property
    def status(self) -> SolveStatus:
        """The worst status of any item (success when there are no items)."""
        return SolveStatus(int(self.item_status.max())) if self.item_status.numel() else SolveStatus.SUCCESS
