"""Which samples cannot be used: recorded on the samples' device, read once at the end of a draw."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from msf_kernels.sampling.blocks import CompleteBlocks
from msf_kernels.sampling.statistics import are_finite

_FINITE = "be finite"


class Validity:
    """The first invalid sample of every input, by readout and by what the readout must be."""

    def __init__(
        self,
        readout: Mapping[str, Tensor],
        reads: Collection[str],
        users: Collection[tuple[str, object]],
        n_inputs: int,
    ) -> None:
        """Watch readouts.

        Args:
            readout: One micro-batch, for names, dtypes and devices.
            reads: Names of the readouts that are looked at; floating ones must be finite.
            users: Accumulators and decisions with the readout that each reads; those that have `accepts` are asked.
            n_inputs: N.
        """
        self._checks: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
            (name, _FINITE): are_finite for name in reads if readout[name].is_floating_point()
        }
        for name, user in users:
            accepts = getattr(user, "accepts", None)
            key = name, getattr(user, "wanted", "be what its statistic takes")
            if accepts is not None:
                self._checks.setdefault(key, accepts)
        none = torch.iinfo(torch.int64).max
        self._first = {
            key: torch.full((n_inputs,), none, dtype=torch.int64, device=readout[key[0]].device) for key in self._checks
        }
        self._none = none

    def update(self, blocks: CompleteBlocks) -> Tensor | None:
        """Look at blocks; return which of their inputs have been invalid so far, [n], None where nothing is watched."""
        are_invalid: Tensor | None = None
        for key, accepts in self._checks.items():
            values, first = blocks.values[key[0]], self._first[key]
            start = torch.tensor(blocks.first).to(first.device, non_blocking=True)
            number = start.unsqueeze(1) + torch.arange(values.shape[1], device=first.device)
            here = torch.where(accepts(values), self._none, number).amin(1)
            first.index_copy_(0, blocks.rows, torch.minimum(first.index_select(0, blocks.rows), here))
            invalid = first.index_select(0, blocks.rows) != self._none
            are_invalid = invalid if are_invalid is None else are_invalid | invalid.to(are_invalid.device)
        return are_invalid

    def read(self) -> dict[tuple[str, str], Tensor]:
        """Return the records on the CPU, -1 where all samples are fine; tensors without values count as fine."""
        return {
            key: torch.full_like(first, -1, device="cpu")
            if first.is_meta
            else torch.where(first == self._none, -1, first).cpu()
            for key, first in self._first.items()
        }


def first_of(records: Mapping[tuple[str, str], Tensor], n_inputs: int) -> Tensor:
    """Return the first invalid sample of each input in any record; int64 [N], -1 for none."""
    none = torch.iinfo(torch.int64).max
    first = torch.full((n_inputs,), none, dtype=torch.int64)
    for record in records.values():
        first = torch.minimum(first, torch.where(record < 0, none, record))
    return torch.where(first == none, -1, first)
