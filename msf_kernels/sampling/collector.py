"""What becomes of evaluated samples: statistics, kept samples, decisions to stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from msf_kernels.sampling.blocks import BlockBuffer, CompleteBlocks
from msf_kernels.sampling.schedule import Chunk, Schedule
from msf_kernels.sampling.statistics import Moments, Statistic
from msf_kernels.sampling.stopping import StopRule
from msf_kernels.sampling.validity import Validity


class Collector:
    """State of one draw that grows with the number of inputs but, unless samples are kept, not of samples."""

    def __init__(
        self,
        readout: Mapping[str, Tensor],
        n_inputs: int,
        bounds: Sequence[int],
        *,
        statistics: Mapping[str, Statistic] | None,
        keep_samples: bool | Sequence[str],
        stop: StopRule | None,
        samples_device: torch.device,
    ) -> None:
        """Set everything up from the first micro-batch's readout (for names, shapes and devices)."""
        n_samples = bounds[-1]
        if statistics is None:
            statistics = {name: Moments(name) for name, value in readout.items() if value.is_floating_point()}
        kept = list(readout) if keep_samples is True else list(keep_samples or ())
        self._signature = {name: (value.shape[1:], value.dtype, value.device) for name, value in readout.items()}
        reads = {name: statistic.reads for name, statistic in statistics.items()}
        _check_names(readout, reads.values(), "statistics read")
        _check_names(readout, kept, "keep_samples names")
        if stop is not None:
            _check_names(readout, [stop.reads], "stop reads")
        self.accumulators = {
            name: statistic.start(n_inputs, readout[statistic.reads]) for name, statistic in statistics.items()
        }
        self.samples = {name: _empty_samples(readout[name], n_inputs, n_samples, samples_device) for name in kept}
        self.n_samples = torch.zeros(n_inputs, dtype=torch.int64)
        self.settled = torch.zeros(n_inputs, dtype=torch.bool)
        self.n_done = 0
        self._reads = reads
        self._bounds = bounds
        self._stop_reads = stop.reads if stop is not None else None
        self._decision = stop.start(n_inputs, readout[stop.reads], n_samples) if stop is not None else None
        buffered = dict.fromkeys([*reads.values(), *kept, *([stop.reads] if stop is not None else [])])
        self._buffer = BlockBuffer(bounds, list(buffered))
        users: list[tuple[str, object]] = [(reads[name], user) for name, user in self.accumulators.items()]
        if self._stop_reads is not None:
            users.append((self._stop_reads, self._decision))
        self.validity = Validity(readout, buffered, users, n_inputs)
        self._n_evaluated: dict[int, int] = {}

    def add(self, chunks: Sequence[Chunk], readout: Mapping[str, Tensor], schedule: Schedule) -> None:
        """Take in one micro-batch (its padding comes last and is ignored) and tell the schedule what follows."""
        self._check_signature(readout)
        for chunk in chunks:
            self._n_evaluated[chunk.row] = self._n_evaluated.get(chunk.row, 0) + chunk.count
            self.n_done += chunk.count
        self._buffer.store(chunks, readout)
        for blocks in self._buffer.complete():
            self._consume(blocks, schedule)

    def _check_signature(self, readout: Mapping[str, Tensor]) -> None:
        """Refuse a readout that is not like the first micro-batch's."""
        if readout.keys() != self._signature.keys():
            raise ValueError(
                "trajectory must return the same readouts for every micro-batch: first it returned "
                f"{', '.join(self._signature)}; then {', '.join(readout) or 'none'}"
            )
        for name, value in readout.items():
            shape, dtype, device = self._signature[name]
            if (value.shape[1:], value.dtype, value.device) != (shape, dtype, device):
                raise ValueError(
                    f"readout {name!r} must be alike in every micro-batch: first it was {_shown(shape)} of {dtype} on "
                    f"{device}; then {_shown(value.shape[1:])} of {value.dtype} on {value.device}"
                )

    def _consume(self, blocks: CompleteBlocks, schedule: Schedule) -> None:
        for name, accumulator in self.accumulators.items():
            accumulator.update(blocks.rows, blocks.values[self._reads[name]])
        for name, samples in self.samples.items():
            values = blocks.values[name].to(samples.device)
            places = torch.tensor(blocks.first).unsqueeze(1) + torch.arange(values.shape[1])
            samples[torch.tensor(blocks.row).unsqueeze(1), places] = values
        ends = [self._bounds[block + 1] for block in blocks.block]
        self.n_samples[torch.tensor(blocks.row)] = torch.tensor(ends)
        are_invalid = self.validity.update(blocks)
        is_over, are_settled = [False] * len(ends), [False] * len(ends)
        if self._decision is not None and self._stop_reads is not None:
            decided = self._decision.update(blocks.rows, blocks.values[self._stop_reads])
            if are_invalid is None:
                are_settled = is_over = decided.tolist()
            else:  # no decision rests on an invalid sample, and no further one is drawn
                are_invalid = are_invalid.to(decided.device)
                are_settled, is_over = torch.stack([decided & ~are_invalid, decided | are_invalid]).tolist()
        for row, block, end, is_settled, ends_here in zip(
            blocks.row, blocks.block, ends, are_settled, is_over, strict=True
        ):
            if ends_here:
                self.settled[row] = is_settled
                schedule.settled(row)
                self._buffer.drop(row)
            elif end < self._bounds[-1]:
                schedule.passed(row, block)
                continue
            self.n_done += self._bounds[-1] - self._n_evaluated.pop(row)


def _check_names(readout: Mapping[str, Tensor], names: Iterable[str], what: str) -> None:
    for name in names:
        if name not in readout:
            raise ValueError(f"{what} {name!r}, which is not a readout; the trajectory returns {', '.join(readout)}")


def _shown(shape: torch.Size) -> str:
    return f"[{', '.join(['B', *map(str, shape)])}]"


def _empty_samples(readout: Tensor, n_inputs: int, n_samples: int, device: torch.device) -> Tensor:
    fill = torch.nan if readout.is_floating_point() else 0
    return torch.full((n_inputs, n_samples, *readout.shape[1:]), fill, dtype=readout.dtype, device=device)
