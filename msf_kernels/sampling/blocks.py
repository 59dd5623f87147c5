"""Samples on their way from micro-batches to statistics.

Micro-batches may come in any order and cut blocks anywhere. The buffer holds the samples of unfinished blocks and
gives blocks out when they are complete, for each input in ascending order. It holds what is in flight, so it does not
grow with the number of samples as long as blocks are evaluated roughly in order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msf_kernels.sampling.schedule import Chunk


@dataclass
class _OpenBlock:
    slot: int
    n_missing: int


@dataclass(frozen=True)
class CompleteBlocks:
    """One complete block of each of some inputs; all blocks have the same length.

    Args:
        row: Numbers of the inputs, distinct.
        block: Number of each input's block.
        first: Number of the first sample of each block.
        rows: `row` as int64 [n] on the samples' device.
        values: The samples, by name of readout: [n, length, ...].
    """

    row: Sequence[int]
    block: Sequence[int]
    first: Sequence[int]
    rows: Tensor
    values: dict[str, Tensor]


class BlockBuffer:
    """Reorder buffer for the samples of unfinished blocks."""

    def __init__(self, bounds: Sequence[int], reads: Collection[str]) -> None:
        """Hold blocks with the given bounds; of the readouts, keep those named in `reads`."""
        self._bounds = bounds
        self._reads = tuple(reads)
        self._width = max(end - first for first, end in zip(bounds, bounds[1:], strict=False))
        self._open: dict[tuple[int, int], _OpenBlock] = {}
        self._free: list[int] = []
        self._n_slots = 0
        self._pool: dict[str, Tensor] = {}
        self._expected: dict[int, int] = {}
        self._touched: dict[int, None] = {}

    def store(self, chunks: Sequence[Chunk], readout: Mapping[str, Tensor]) -> None:
        """Take in the samples of chunks: the first rows of each readout, in the chunks' order."""
        opened = [self._open.get((c.row, c.block)) or self._start(c.row, c.block) for c in chunks]
        self._reserve(readout)
        counts = torch.tensor([c.count for c in chunks])
        n_valid = int(counts.sum())
        starts = [
            block.slot * self._width + c.first - self._bounds[c.block] for block, c in zip(opened, chunks, strict=True)
        ]
        places = expand_ranges(torch.tensor(starts), counts)
        for name, pool in self._pool.items():
            pool.index_copy_(0, places.to(pool.device, non_blocking=True), readout[name][:n_valid])
        for block, c in zip(opened, chunks, strict=True):
            block.n_missing -= c.count
            self._touched[c.row] = None

    def complete(self) -> Iterator[CompleteBlocks]:
        """Give out complete blocks, each input's in ascending order, and forget them.

        Inputs are grouped as far as their blocks have equal lengths; an input may come again with its next block.
        """
        while self._touched:
            by_length: dict[int, list[tuple[int, int]]] = {}
            for row in self._touched:
                block = self._expected.get(row, 0)
                found = self._open.get((row, block))
                if found is not None and found.n_missing == 0:
                    length = self._bounds[block + 1] - self._bounds[block]
                    by_length.setdefault(length, []).append((row, block))
            self._touched = {}
            for length, keys in by_length.items():
                blocks = self._gather(length, keys)
                for row, block in keys:
                    self._free.append(self._open.pop((row, block)).slot)
                    self._expected[row] = block + 1
                    self._touched[row] = None
                yield blocks

    def drop(self, row: int) -> None:
        """Forget an input that needs no more samples."""
        for key in [key for key in self._open if key[0] == row]:
            self._free.append(self._open.pop(key).slot)
        self._expected.pop(row, None)
        self._touched.pop(row, None)

    def _start(self, row: int, block: int) -> _OpenBlock:
        if not self._free:
            self._free.append(self._n_slots)
            self._n_slots += 1
        started = _OpenBlock(self._free.pop(), self._bounds[block + 1] - self._bounds[block])
        self._open[row, block] = started
        return started

    def _reserve(self, readout: Mapping[str, Tensor]) -> None:
        n_rows = self._n_slots * self._width
        for name in self._reads:
            old = self._pool.get(name)
            if old is None or old.shape[0] < n_rows:
                # Grow by a half, so that many small growths do not copy the pool each time.
                size = n_rows if old is None else max(n_rows, old.shape[0] * 3 // 2)
                pool = readout[name].new_empty((size, *readout[name].shape[1:]))
                if old is not None:
                    pool[: old.shape[0]] = old
                self._pool[name] = pool

    def _gather(self, length: int, keys: Sequence[tuple[int, int]]) -> CompleteBlocks:
        starts = torch.tensor([self._open[key].slot * self._width for key in keys])
        places = (starts.unsqueeze(1) + torch.arange(length)).flatten()
        row, block = [key[0] for key in keys], [key[1] for key in keys]
        values = {
            name: pool.index_select(0, places.to(pool.device, non_blocking=True)).reshape(
                len(keys), length, *pool.shape[1:]
            )
            for name, pool in self._pool.items()
        }
        device = next(iter(values.values())).device if values else torch.device("cpu")
        rows = torch.tensor(row).to(device, non_blocking=True)
        return CompleteBlocks(row, block, [self._bounds[b] for b in block], rows, values)


def expand_ranges(starts: Tensor, counts: Tensor) -> Tensor:
    """Return the concatenated ranges `start, start + 1, ...` of the given lengths; all int64 on the CPU."""
    ends = counts.cumsum(0)
    return torch.arange(int(ends[-1])) + (starts - (ends - counts)).repeat_interleave(counts)
