"""Rules that end the sampling of an input early, with a stated error level."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from msf_kernels.checks import as_float, as_int
from msf_kernels.sampling.statistics import VoteRule, Votes


class StopDecision(Protocol):
    """State of a rule during one draw; it may have `accepts` and `wanted`, as an `Accumulator` may."""

    def update(self, rows: Tensor, values: Tensor) -> Tensor:
        """Take one more block of samples for each of some inputs and say which of them are settled now.

        Args:
            rows: int64 [n], distinct numbers of inputs.
            values: [n, length, ...], their next samples of the readout.

        Returns:
            bool [n].
        """


class StopRule(Protocol):
    """Description of a rule; `reads` names the readout that it looks at."""

    @property
    def reads(self) -> str:
        """Name of the readout."""

    def checkpoints(self, n_samples: int) -> Sequence[int]:
        """Return the sample counts at which inputs may settle, ascending, when `n_samples` are allowed."""

    def start(self, n_inputs: int, readout: Tensor, n_samples: int) -> StopDecision:
        """Return the state before any sample; arguments as for `Statistic.start`."""


@dataclass(frozen=True)
class SettledVote:
    """Stop when the leading class of an input's votes is, at error level alpha, the one of infinitely many votes.

    Settled: for every other class b, the leader a has `E(n_a, n_b) >= (n_classes - 1) / alpha`, where
    `E(n_a, n_b) = integral over q in (1/2, 1) of 2 * (2 q)^n_a * (2 (1 - q))^n_b dq`.

    Guarantee: for each input, the probability that it is ever settled for a class that is not among its most probable
    ones is at most alpha, whatever the vote probabilities, however often the rule is asked, and for every maximum
    number of samples. Votes must be independent draws (so not antithetic pairs). Nothing is claimed for inputs that
    are not settled, and one with a sample that cannot vote (see `Votes`) never is. The statement is about the votes of
    the same trajectory, not about the truth of the class.

    Why: let p_a <= p_b for two classes, and look at the votes for one of the two only. A vote multiplies the integrand
    by 2 q if it is for a, which happens with probability p_a / (p_a + p_b) <= 1/2, else by 2 (1 - q); its expected
    factor is at most 1 as q > 1/2. So the integral is a non-negative supermartingale that starts at 1, and reaches
    (n_classes - 1) / alpha with probability at most alpha / (n_classes - 1) (Ville's inequality). A wrong leader a
    would need that against the most probable class; there are n_classes - 1 of them.

    In closed form `E = sum over j <= n_a of C(n + 1, j) / ((n + 1) C(n, n_a))` with `n = n_a + n_b`; thresholds on n_a
    are computed in exact integer arithmetic, so decisions have no rounding.

    Args:
        alpha: Error level per input, in (0, 1).
        reads: Name of the readout that votes.
        rule: How it votes: see `Votes`.
        n_classes: Number of classes, for the rule `label` only.
        first: Votes before the rule is asked first; it is asked again each time there are a quarter more.

    Source:
        One-versus-one mode estimation: Jain et al., "PAC Mode Estimation using PPR Martingale Confidence Sequences",
        AISTATS 2022, arXiv 2109.05047, with a mixture over q > 1/2 only, as the leader is on that side.
    """

    alpha: float = 0.05
    reads: str = "distance"
    rule: VoteRule = "argmin"
    n_classes: int | None = None
    first: int = 8

    def __post_init__(self) -> None:
        """Check the numbers."""
        object.__setattr__(self, "alpha", as_float("alpha", self.alpha))
        object.__setattr__(self, "first", as_int("first", self.first))
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be in (0, 1); got {self.alpha!r}")
        if self.first < 1:
            raise ValueError(f"first must be >= 1; got {self.first!r}")
        self._votes()

    def _votes(self) -> Votes:
        return Votes(self.reads, self.rule, self.n_classes)

    def checkpoints(self, n_samples: int) -> Sequence[int]:
        """Return `first`, then each time a quarter more, up to `n_samples`; see `StopRule.checkpoints`."""
        counts = []
        count = self.first
        while count < n_samples:
            counts.append(count)
            count += max(1, count // 4)
        return counts

    def start(self, n_inputs: int, readout: Tensor, n_samples: int) -> StopDecision:
        """Return the state before any vote; see `StopRule.start`."""
        return _SettledVoteDecision(self._votes(), self.alpha, n_inputs, readout, n_samples)


class _SettledVoteDecision:
    def __init__(self, votes: Votes, alpha: float, n_inputs: int, readout: Tensor, n_samples: int) -> None:
        self._votes = votes.start(n_inputs, readout)
        n_rivals = max(1, self._votes.count.shape[1] - 1)
        thresholds = leader_thresholds(Fraction(n_rivals) / Fraction(alpha), n_samples)
        self._thresholds = torch.tensor(thresholds, device=readout.device)

    def update(self, rows: Tensor, values: Tensor) -> Tensor:
        self._votes.update(rows, values)
        count, is_valid = (each.index_select(0, rows) for each in (self._votes.count, self._votes.is_valid))
        return is_settled(count, self._thresholds) & is_valid

    def accepts(self, values: Tensor) -> Tensor:
        return self._votes.accepts(values)

    @property
    def wanted(self) -> str:
        return self._votes.wanted


def is_settled(count: Tensor, thresholds: Tensor) -> Tensor:
    """Say which rows of votes [n, n_classes] have a leader that beats every other class; bool [n]."""
    leader = count.max(1)
    needed = thresholds[(leader.values.unsqueeze(1) + count).clamp(max=len(thresholds) - 1)]
    beaten = leader.values.unsqueeze(1) >= needed
    beaten.scatter_(1, leader.indices.unsqueeze(1), True)
    return beaten.all(1)


@functools.lru_cache(maxsize=16)
def leader_thresholds(needed: Fraction, n_votes: int) -> tuple[int, ...]:
    """Return, for n = 0 ... n_votes votes for two classes, how many the leader needs.

    That is the smallest n_a with `sum over j <= n_a of C(n + 1, j) >= needed * (n + 1) * C(n, n_a)`, and n + 1 where no
    n_a suffices.
    """
    thresholds = []
    # Pascal's row n + 1: its entry `at_leader` and the sum `up_to_leader` of its entries up to there. Neither one vote
    # more for the rival lowers the threshold, nor does one more for the leader raise it by more than one.
    leader, at_leader, up_to_leader = 0, 1, 1
    for row in range(1, n_votes + 2):
        up_to_leader, at_leader = 2 * up_to_leader - at_leader, at_leader * row // (row - leader)
        while up_to_leader * needed.denominator < needed.numerator * (row - leader) * at_leader:
            at_leader = at_leader * (row - leader) // (leader + 1)
            leader += 1
            up_to_leader += at_leader
        thresholds.append(leader)
    return tuple(thresholds)
