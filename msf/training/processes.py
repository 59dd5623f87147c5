"""The processes of one training: which rows are whose, what they tell each other, and how they end together.

Gradients are the business of `torch.nn.parallel.DistributedDataParallel`. What lives here is the rest, in host memory
and over a group of its own: it waits for others as long as they live, however long one of them validates or encodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from msf.device import choose_device
from msf.ranks import ProcessLostError

if TYPE_CHECKING:
    from accelerate import Accelerator

Value = TypeVar("Value")

# A process that dies is noticed at once, by its closed connection; this is for networks that fall silent.
_PATIENCE = timedelta(days=1)
_STORE_SECONDS = timedelta(seconds=60)
_FAILED = "failed"


class Processes:
    """All processes of a run, seen from one of them. Each calls the same methods in the same order.

    Args:
        accelerator: Knows how many there are.

    Attributes:
        n: How many there are.
        index: Number of this one.
        is_main: Whether this one writes and speaks for all.
        accelerator: As given.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        """Connect them."""
        self.accelerator = accelerator
        self.n: int = accelerator.num_processes
        self.index: int = accelerator.process_index
        self.is_main = self.index == 0
        self._group: Any = None
        self._store: Any = None
        if self.n > 1:
            self._group = dist.new_group(backend="gloo", timeout=_PATIENCE)
            self._store = self._connect()

    def _connect(self) -> Any:
        """Return a store that all see: it holds why one of them has failed."""
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        make = partial(dist.TCPStore, host, timeout=_STORE_SECONDS)  # type: ignore[attr-defined]
        if self.is_main:
            store = make(0, is_master=True, wait_for_workers=False)
            self.from_main(lambda: store.port)
        else:
            store = make(self.from_main(int), is_master=False)
        self.wait()  # or the main one might end before it was found
        return store

    def rows(self, n: int) -> Tensor:
        """Return which of n rows are this process's: every n-th, int64; perhaps none."""
        return torch.arange(n)[self.index :: self.n]

    def padded_rows(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the same, filled up to as many as every process has, and which of them count.

        Args:
            n: Rows, >= 1.

        Returns:
            int64 [ceil(n / processes)] and bool of the same shape. Row 0 stands where there is none; it does not count.
        """
        rows = torch.arange(self.index, self.index + -(-n // self.n) * self.n, self.n)
        counts = rows < n
        return torch.where(counts, rows, 0), counts

    def from_main(self, make: Callable[[], Value]) -> Value:
        """Return what the main process makes, to all."""
        if self.n == 1:
            return make()
        box = [make() if self.is_main else None]
        dist.broadcast_object_list(box, src=0, group=self._group)
        made: Any = box[0]
        return made  # type: ignore[no-any-return]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, in their order, to all."""
        if self.n == 1:
            return [value]
        values: list[Any] = [None] * self.n
        dist.all_gather_object(values, value, group=self._group)
        return values

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor on the training's device."""
        if self.n > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Wait until all have come here."""
        if self.n > 1:
            dist.barrier(group=self._group)

    def tell(self, error: BaseException) -> None:
        """Let the others know why this process ends; the first one is kept."""
        if self.n > 1 and not isinstance(error, ProcessLostError):
            text = " ".join(str(error).split()) or type(error).__name__
            with suppress(Exception):  # the store is the main process's, and may be gone
                self._store.compare_set(_FAILED, "", f"process {self.index} of {self.n} ended: {text}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Turn the errors of exchanges that fail for another process's end into one that says so.

        Raises:
            ProcessLostError: In their place.
        """
        try:
            yield
        except RuntimeError as error:
            lost = self.lost(error)
            if lost is None:
                raise
            raise lost from error

    def lost(self, error: BaseException) -> ProcessLostError | None:
        """Return what an error means where it comes of another process's end; None where it is this one's own."""
        if self.n == 1 or not isinstance(error, RuntimeError) or not _is_of_connection(error):
            return None
        try:
            why = self._store.get(_FAILED).decode() if self._store.check([_FAILED]) else ""
        except Exception:
            why = f"process 0 of {self.n} ended; its own message says why"
        return ProcessLostError(why or f"one of {self.n} processes ended without a word; their launcher tells which")


def accelerator_on(device: str | torch.device | None) -> Accelerator:
    """Return an accelerator on a device; several processes are connected.

    Args:
        device: `cpu`, or a CUDA device; default: CUDA if there is any, else the CPU.

    Raises:
        ValueError: The device is not there, or not this process's.
    """
    from accelerate import Accelerator

    wanted = choose_device(device)
    # The precision is not the accelerator's: its state belongs to the process and could not change between two runs.
    accelerator = Accelerator(cpu=wanted.type == "cpu")
    if not _is_given(wanted, accelerator.device):
        raise ValueError(
            f"device must be {accelerator.device}, which this process was given; got {str(wanted)!r}. Choose another "
            "GPU with CUDA_VISIBLE_DEVICES"
        )
    return accelerator


def _is_given(wanted: torch.device, given: torch.device) -> bool:
    """Return whether the device that is wanted is the one of this process; a process of its own has no index."""
    if wanted.type != given.type:
        return False
    if wanted.type != "cuda" or wanted.index is None:
        return True
    return wanted.index == (torch.cuda.current_device() if given.index is None else given.index)


def _is_of_connection(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "Gloo", "NCCL"))
