"""Signals that ask a process to end: an exception where it may arrive, put off where it would do harm."""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# A signal is often sent twice, to a process and to its group; the second must not disturb what the first started.
REPEAT_SECONDS = 2.0


class Interrupted(BaseException):
    """The process was asked to end. Not an `Exception`, so that nothing takes it for an error and goes on.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        """Keep the signal's number."""
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        """The code that shells give to a process which this signal ended."""
        return 128 + self.number


class _Request:
    """What has arrived. Signals are the process's, so there is one."""

    number: int | None = None
    arrived: float = 0.0
    n_undisturbed: int = 0


_request = _Request()


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread when SIGINT, SIGTERM or SIGHUP arrives, until the block ends.

    Signals that the process ignores stay ignored (`nohup`, background jobs). Handlers are put back afterwards. In
    another thread than the main one, which alone may set handlers, and inside another such block, the block runs as it
    is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    if _handle in previous.values():
        yield
        return
    caught = [number for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)]
    _request.number = None
    try:
        for number in caught:
            signal.signal(number, _handle)
        yield
    finally:
        for number in caught:
            signal.signal(number, previous[number])
        _request.number = None


@contextmanager
def undisturbed(*, is_last: bool = False) -> Iterator[None]:
    """Put an interruption off until the end of the block. Without `interruptible` this does nothing.

    Args:
        is_last: The block belongs to the ending itself, such as a last save: it also runs after an interruption, and
            none is raised at its end.

    Raises:
        Interrupted: A signal has arrived during the block; or before it, and its exception got lost, as one in a
            destructor does.
    """
    if not is_last:
        raise_if_requested()
    _request.n_undisturbed += 1
    try:
        yield
    finally:
        _request.n_undisturbed -= 1
    if not is_last:
        raise_if_requested()


@contextmanager
def disturbed() -> Iterator[None]:
    """Let interruptions through again, inside `undisturbed`."""
    held, _request.n_undisturbed = _request.n_undisturbed, 0
    try:
        raise_if_requested()
        yield
    finally:
        _request.n_undisturbed = held


def requested() -> int | None:
    """Return the number of the signal that has arrived, None where none has."""
    return _request.number


def end_in_peace() -> None:
    """Let no signal disturb the clearing up at the end of the process, which would end it with a traceback.

    Called when all work is done; what the process still runs is its exit handlers and destructors.
    """
    atexit.unregister(_ignore_signals)
    atexit.register(_ignore_signals)  # the last one runs first


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def raise_if_requested() -> None:
    """Raise `Interrupted` where a signal has arrived and is not put off."""
    if _request.number is not None and not _request.n_undisturbed:
        raise Interrupted(_request.number)


def _handle(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if _request.number is None:
        _request.number, _request.arrived = number, now
    elif now - _request.arrived < REPEAT_SECONDS:
        return
    raise_if_requested()


def save_at_last(save: Callable[[], None], interruption: BaseException, what: str) -> None:
    """Save before a run ends; an error on the way is told by the interruption, and does not replace it.

    Args:
        save: Writes what is to be kept; signals wait meanwhile.
        interruption: What ends the run.
        what: Name of what is saved, for the note where that fails.
    """
    try:
        with undisturbed(is_last=True):
            save()
    except Exception as error:
        interruption.add_note(f"{what} could not be saved ({error})")
