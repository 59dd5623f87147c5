"""Which samples of which inputs are evaluated next.

The unit of work is a *block*: consecutive samples of one input, from one block bound to the next. A block is what
statistics are updated by and where a stopping rule is asked, so its bounds are a function of the number of samples
and of the rule alone, never of the micro-batch. A micro-batch is filled with *chunks*: parts of blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

BLOCK_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Chunk:
    """Samples `first ... first + count - 1` of input `row`; all of them lie in block `block`."""

    row: int
    block: int
    first: int
    count: int


def block_bounds(n_samples: int, checkpoints: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the sample counts at which blocks begin and end: 0, ..., n_samples.

    Args:
        n_samples: Samples per input at most.
        checkpoints: Sample counts at which a stopping rule wants to be asked, ascending; those at or above
            `n_samples` do not matter. Blocks end there, and are nowhere longer than 64 samples.
    """
    bounds = [0]
    for end in [*(count for count in checkpoints if 0 < count < n_samples), n_samples]:
        while bounds[-1] < end:
            bounds.append(min(bounds[-1] + BLOCK_SAMPLES, end))
    return tuple(bounds)


class Schedule:
    """Hands out the work of one draw in chunks.

    Without gating, every block may be evaluated at once and inputs come one after the other. With gating, a block
    waits until the stopping rule has let its input pass the block before, so that slots go to unsettled inputs. Only
    where a micro-batch would otherwise be filled with padding are blocks of undecided inputs evaluated ahead; they
    are forgotten if the input settles first, so a decision never depends on what happened to be evaluated.
    """

    def __init__(self, n_inputs: int, bounds: Sequence[int], *, is_gated: bool = False) -> None:
        """Plan blocks with the given bounds for every input."""
        self._bounds = bounds
        self._is_gated = is_gated
        self._fresh: Iterator[int] = iter(range(n_inputs))
        self._queue: deque[Chunk] = deque()
        self._next_block: dict[int, int] = {}

    def take(self, n_slots: int) -> list[Chunk]:
        """Return chunks that fill up to `n_slots` slots; an empty list when no work is left."""
        chunks: list[Chunk] = []
        while n_slots > 0:
            if not self._queue and not self._refill():
                break
            chunk = self._queue.popleft()
            if chunk.count > n_slots:
                rest = replace(chunk, first=chunk.first + n_slots, count=chunk.count - n_slots)
                self._queue.appendleft(rest)
                chunk = replace(chunk, count=n_slots)
            chunks.append(chunk)
            n_slots -= chunk.count
        return chunks

    def put_back(self, chunks: Sequence[Chunk]) -> None:
        """Return chunks that could not be evaluated; they come first again."""
        self._queue.extendleft(reversed(chunks))

    def reorder(self, order: Sequence[int], micro_batch: int) -> None:
        """Arrange the micro-batches, numbered as they would come by themselves, in another order.

        Raises:
            ValueError: `order` is not a permutation of the micro-batch numbers.
        """
        batches = []
        while batch := self.take(micro_batch):
            batches.append(batch)
        if sorted(order) != list(range(len(batches))):
            raise ValueError(f"order must be a permutation of the {len(batches)} micro-batch numbers; got {order!r}")
        self._queue.extend(chunk for number in order for chunk in batches[number])

    def passed(self, row: int, block: int) -> None:
        """Let an undecided input continue after `block`."""
        following = block + 1
        if self._is_gated and self._next_block.get(row) == following:
            self._issue(row, following)

    def settled(self, row: int) -> None:
        """Forget what is left of an input."""
        self._next_block.pop(row, None)
        self._queue = deque(chunk for chunk in self._queue if chunk.row != row)

    def _issue(self, row: int, block: int) -> None:
        first, end = self._bounds[block], self._bounds[block + 1]
        self._queue.append(Chunk(row, block, first, end - first))
        if block + 2 < len(self._bounds):
            self._next_block[row] = block + 1
        else:
            self._next_block.pop(row, None)

    def _refill(self) -> bool:
        row = next(self._fresh, None)
        if row is not None:
            self._issue(row, 0)
            while not self._is_gated and row in self._next_block:
                self._issue(row, self._next_block[row])
            return True
        if self._next_block:
            row = min(self._next_block, key=self._next_block.__getitem__)
            self._issue(row, self._next_block[row])
            return True
        return False
