"""Statistics of a readout over the samples of each input, accumulated while samples stream by.

A statistic is a small description (`MeanVariance("distance")`); `start` gives its accumulator. An accumulator gets
whole blocks of consecutive samples, for each input in ascending order, and computes in fp64 by a fixed tree of
additions inside a block: its bits depend on the samples and on the block bounds only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from msf_kernels.checks import as_int, require_int

VoteRule = Literal["argmin", "argmax", "label"]


class Accumulator(Protocol):
    """State of a statistic during one draw.

    It may also have `accepts(values) -> bool [n, length]`, the samples that it can use, and `wanted`, the end of a
    sentence that begins with "the readout must". A draw ends in an `InvalidSamplesError` where there are others.
    """

    def update(self, rows: Tensor, values: Tensor) -> None:
        """Add one block of samples to each of some inputs.

        Args:
            rows: int64 [n], distinct numbers of inputs.
            values: [n, length, ...], their next `length` samples of the readout.
        """

    def finish(self) -> dict[str, Tensor]:
        """Return the named results, each with first axis N."""


class Statistic(Protocol):
    """Description of a statistic; `reads` names the readout that it is computed from."""

    @property
    def reads(self) -> str:
        """Name of the readout."""

    def start(self, n_inputs: int, readout: Tensor) -> Accumulator:
        """Return an empty accumulator.

        Args:
            n_inputs: N, how many inputs there are.
            readout: One micro-batch of the readout [B, ...], for its shape and device.
        """


@dataclass(frozen=True)
class MeanVariance:
    """Mean and variance of a readout over samples, element by element.

    Blocks are merged by the pairwise update of mean and squared deviations (Chan, Golub and LeVeque, 1983), the
    many-samples form of Welford's; nothing is ever computed as E[x^2] - E[x]^2.

    Results: `mean` and `variance`, fp64 [N, ...].

    Args:
        reads: Name of the readout, a floating-point tensor [B, ...].
        correction: The squared deviations are divided by `n_samples - correction`: 1 is unbiased, 0 is the variance
            of the drawn samples. The variance is NaN where `n_samples <= correction`.
    """

    reads: str = "readout"
    correction: int = 1

    def start(self, n_inputs: int, readout: Tensor) -> Accumulator:
        """Return an empty accumulator; see `Statistic.start`."""
        return _MeanVarianceAccumulator(n_inputs, readout, self.correction)


@dataclass(frozen=True)
class Mean:
    """Mean of a readout over samples, element by element; half the memory of `MeanVariance`.

    Results: `mean`, fp64 [N, ...].

    Args:
        reads: Name of the readout, a floating-point tensor [B, ...].
    """

    reads: str = "readout"

    def start(self, n_inputs: int, readout: Tensor) -> Accumulator:
        """Return an empty accumulator; see `Statistic.start`."""
        return _MeanAccumulator(n_inputs, readout)


@dataclass(frozen=True)
class MeanEntropy:
    """Mean over samples of the entropy of each sample's own probabilities, in nats.

    Results: `mean`, fp64 [N] (with further axes, such as pixels, [N, ...]). With the entropy of the mean probability it
    gives the mutual information. A sample with a negative probability cannot be used.

    Args:
        reads: Name of the readout, probabilities [B, n_classes].
    """

    reads: str = "probability"

    def start(self, n_inputs: int, readout: Tensor) -> Accumulator:
        """Return an empty accumulator; see `Statistic.start`."""
        return _MeanEntropyAccumulator(n_inputs, readout[:, 0])


@dataclass(frozen=True)
class Votes:
    """How many samples vote for each class.

    NaN never votes, nor does a label that is not whole or not in [0, n_classes). Results: `count`, int64
    [N, n_classes, ...], and `share`, fp64 of that shape: NaN for an input with such a sample.

    Args:
        reads: Name of the readout.
        rule: `argmin` (distances [B, n_classes]; ties go to the lowest class), `argmax` (scores [B, n_classes]), or
            `label` (class numbers [B]). Of further axes of distances and scores, such as pixels, each place votes.
        n_classes: Number of classes, for the rule `label` only.
    """

    reads: str = "distance"
    rule: VoteRule = "argmin"
    n_classes: int | None = None

    def __post_init__(self) -> None:
        """Check the rule."""
        if self.n_classes is not None:
            object.__setattr__(self, "n_classes", as_int("n_classes", self.n_classes))
            require_int("n_classes", self.n_classes, 1)
        if self.rule not in ("argmin", "argmax", "label"):
            raise ValueError(f"rule must be one of argmin, argmax, label; got {self.rule!r}")
        if (self.rule == "label") != (self.n_classes is not None):
            raise ValueError(
                "n_classes must be given for the rule 'label' and for no other; "
                f"got rule={self.rule!r}, n_classes={self.n_classes!r}"
            )

    def start(self, n_inputs: int, readout: Tensor) -> VotesAccumulator:
        """Return an empty accumulator; see `Statistic.start`."""
        n_axes = 1 if self.rule == "label" else 2
        if readout.dim() < n_axes or (readout.dim() > n_axes and self.rule == "label"):
            wanted = "[B]" if n_axes == 1 else "[B, n_classes]"
            raise ValueError(
                f"readout {self.reads!r} must be {wanted} for votes by {self.rule}; got {list(readout.shape)}"
            )
        if readout.is_complex():
            raise TypeError(f"readout {self.reads!r} must hold real numbers for votes; got {readout.dtype}")
        n_classes = self.n_classes if self.n_classes is not None else readout.shape[1]
        return VotesAccumulator(n_inputs, n_classes, self.rule, readout.device, readout.shape[n_axes:])


def are_finite(values: Tensor) -> Tensor:
    """Say which samples [n, length, ...] have neither NaN nor infinity; bool [n, length]."""
    finite = values.isfinite()
    return finite.flatten(2).all(2) if finite.dim() > 2 else finite


def tree_sum(values: Tensor, dim: int) -> Tensor:
    """Sum over one axis by a tree of pairwise additions that is a function of the axis' length alone."""
    while (length := values.shape[dim]) > 1:
        first, second, *odd_one = torch.split(values, length // 2, dim)
        values = torch.cat([first + second, *odd_one], dim) if odd_one else first + second
    return values.squeeze(dim)


def _require_floating(readout: Tensor) -> None:
    if not readout.is_floating_point():
        raise TypeError(f"means and variances need a floating-point readout; got {readout.dtype}")


class _MeanAccumulator:
    def __init__(self, n_inputs: int, readout: Tensor) -> None:
        _require_floating(readout)
        shape = (n_inputs, *readout.shape[1:])
        self.total = torch.zeros(shape, dtype=torch.float64, device=readout.device)
        self.count = torch.zeros(n_inputs, dtype=torch.float64, device=readout.device)

    def update(self, rows: Tensor, values: Tensor) -> None:
        block_total = tree_sum(values.double(), 1)
        self.total.index_copy_(0, rows, self.total.index_select(0, rows) + block_total)
        self.count.index_copy_(0, rows, self.count.index_select(0, rows) + values.shape[1])

    def finish(self) -> dict[str, Tensor]:
        return {"mean": self.total / _per_input(self.count, self.total)}


class _MeanEntropyAccumulator(_MeanAccumulator):
    def update(self, rows: Tensor, values: Tensor) -> None:
        super().update(rows, tree_sum(torch.special.entr(values.double()), 2))

    def accepts(self, values: Tensor) -> Tensor:
        positive = (values >= 0).all(2)
        return positive.flatten(2).all(2) if positive.dim() > 2 else positive

    @property
    def wanted(self) -> str:
        return "hold no negative probability"


class _MeanVarianceAccumulator:
    def __init__(self, n_inputs: int, readout: Tensor, correction: int) -> None:
        _require_floating(readout)
        shape = (n_inputs, *readout.shape[1:])
        self.mean = torch.zeros(shape, dtype=torch.float64, device=readout.device)
        self.squares = torch.zeros_like(self.mean)
        self.count = torch.zeros(n_inputs, dtype=torch.float64, device=readout.device)
        self.correction = correction

    def update(self, rows: Tensor, values: Tensor) -> None:
        values = values.double()
        n_block = values.shape[1]
        block_mean = tree_sum(values, 1) / n_block
        deviation = values - block_mean.unsqueeze(1)
        block_squares = tree_sum(deviation * deviation, 1)

        count, mean = self.count.index_select(0, rows), self.mean.index_select(0, rows)
        merged = count + n_block
        delta = block_mean - mean
        mean_weight, square_weight = (_per_input(w, mean) for w in (n_block / merged, count * n_block / merged))
        squares = self.squares.index_select(0, rows) + block_squares
        self.mean.index_copy_(0, rows, mean + delta * mean_weight)
        self.squares.index_copy_(0, rows, squares + delta * delta * square_weight)
        self.count.index_copy_(0, rows, merged)

    def finish(self) -> dict[str, Tensor]:
        freedom = self.count - self.correction
        freedom = torch.where(freedom > 0, freedom, torch.nan)
        return {"mean": self.mean, "variance": self.squares / _per_input(freedom, self.squares)}


class VotesAccumulator:
    """Vote counts; integers, so any order of additions gives the same."""

    def __init__(
        self, n_inputs: int, n_classes: int, rule: VoteRule, device: torch.device, voters: Sequence[int] = ()
    ) -> None:
        """Start with no votes; `Votes` describes the rules, and `voters` are the further axes."""
        self.count = torch.zeros(n_inputs, n_classes, *voters, dtype=torch.int64, device=device)
        self.is_valid = torch.ones(n_inputs, dtype=torch.bool, device=device)
        self._classes = torch.arange(n_classes, device=device).reshape(-1, *[1] * len(voters))
        self._rule = rule

    def update(self, rows: Tensor, values: Tensor) -> None:
        """Add one block of samples to each of some inputs; see `Accumulator.update`."""
        label = values
        if self._rule == "argmin":
            label = values.argmin(2)
        elif self._rule == "argmax":
            label = values.argmax(2)
        accepted = self.accepts(values)  # [n, length]
        is_vote = label.unsqueeze(2) == self._classes  # [n, length, n_classes, ...]
        votes = (is_vote & accepted.reshape(*accepted.shape, *[1] * (is_vote.dim() - 2))).sum(1)
        self.count.index_copy_(0, rows, self.count.index_select(0, rows) + votes)
        self.is_valid.index_copy_(0, rows, self.is_valid.index_select(0, rows) & accepted.all(1))

    @property
    def wanted(self) -> str:
        """What a sample must be in order to vote."""
        return f"be a whole number in [0, {len(self._classes)})" if self._rule == "label" else "be finite"

    def accepts(self, values: Tensor) -> Tensor:
        """Say which samples [n, length, ...] can vote; bool [n, length]."""
        if self._rule != "label":
            return are_finite(values)
        return (values.unsqueeze(2) == self._classes).any(2)

    def finish(self) -> dict[str, Tensor]:
        """Return `count` and `share`; see `Votes`."""
        share = self.count.double() / self.count.sum(1, keepdim=True)
        return {"count": self.count, "share": torch.where(_per_input(self.is_valid, share), share, torch.nan)}


def _per_input(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (like.dim() - 1))
