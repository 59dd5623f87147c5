"""What the commands print: progress, results, one-line errors."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from msf.cli.targets import write_result
from msf.interruption import Interrupted, raise_if_requested, requested
from msf.ranks import ProcessLostError, is_main, place

LINE_SECONDS = 30.0
# The disk's fault, or its owner's, and no bad input; what was saved stays, and the run can go on once there is room.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_SIGPIPE = getattr(signal, "SIGPIPE", signal.SIGTERM)
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class _Console(Console):
    """A console whose reader may go away, as in `msf info | head`; the command then ends as by the signal for that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise _reader_is_gone(sys.stderr if self.stderr else sys.stdout)


# What is printed holds names of files and classes, which are no markup. Of several processes the main one speaks.
out = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=not is_main())
err = _Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=not is_main())

Advance = Callable[..., None]


@contextmanager
def errors_as_one_line() -> Iterator[None]:
    """End the process with one line where something is wrong: bad input with exit code 2, a failed run with 1.

    A signal ends it with 128 and its number.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        _stop(error, 128 + signal.SIGINT)
    except Interrupted as error:
        _stop(error, error.exit_code)
    except BrokenPipeError:
        _stop(_reader_is_gone(sys.stdout), 128 + _SIGPIPE)
    except Exception as error:
        number = requested()
        if number is not None:  # its exception turned into another one, as in an import
            interruption = Interrupted(number)
            for note in getattr(error, "__notes__", []):
                interruption.add_note(note)
            _stop(interruption, interruption.exit_code)
        code = _exit_code(error)
        if code is None:
            raise
        _stop(error, code)


@dataclass
class Kept:
    """What is on the disk, as a clause for the user; a training tells for itself while it runs."""

    what: str = "the training had not begun; what was saved before stays"


@contextmanager
def resumable(command: str | None = None) -> Iterator[Kept]:
    """Name the command that goes on with a run where a signal, a full disk or lack of memory ends it.

    Args:
        command: Default: what was called, with `--resume`.

    Yields:
        What is told where the error itself does not tell; to be changed when there is more.
    """
    kept = Kept()
    try:
        yield kept
    except BaseException as error:
        is_signal = isinstance(error, Interrupted | KeyboardInterrupt) or requested() is not None
        has_failed = isinstance(error, OSError | MemoryError | RuntimeError) and _exit_code(error) == 1
        if is_signal or has_failed:
            if is_main() and not getattr(error, "__notes__", None):
                error.add_note(kept.what)
            note_command(error, command)
        raise


def note_command(error: BaseException, command: str | None = None) -> None:
    """Tell with an error which command goes on: by default what was called, with `--resume`."""
    arguments = ["msf", *sys.argv[1:]]
    if "--resume" not in arguments:
        arguments.append("--resume")
    if not is_main():
        return
    n = place()[1]
    launcher = f", launched with any number of processes, as now with {n}" if n > 1 else ""
    error.add_note(f"go on with: {command or shlex.join(arguments)}{launcher}")


@contextmanager
def progress_bar(description: str, *, lines: bool = False) -> Iterator[Advance]:
    """Show a bar on a terminal; in a pipe nothing, or lines.

    Args:
        description: What is under way.
        lines: In a pipe, print a line at every milestone and at least every 30 seconds.

    Yields:
        `advance(done, total, note="", *, stage=description, is_milestone=False)`.
    """
    with _shown(description, lines) as show:

        def advance(*state: Any, **options: Any) -> None:
            raise_if_requested()  # the exception of a signal gets lost where it meets a destructor
            show(*state, **options)

        yield advance


@contextmanager
def _shown(description: str, lines: bool) -> Iterator[Advance]:
    if not is_main():
        yield lambda *_, **__: None
    elif sys.stderr is not None and sys.stderr.isatty() and not err.is_dumb_terminal:
        with _bar(description) as advance:
            yield advance
    elif lines and sys.stderr is not None:  # None where it is closed (2>&-)
        with _Lines(description) as shown:
            yield shown.advance
    else:
        yield lambda *_, **__: None


@contextmanager
def _bar(description: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task, shown = bar.add_task(description, total=None, note=""), description

        def advance(
            done: int, total: int, note: str = "", *, stage: str = description, is_milestone: bool = False
        ) -> None:
            nonlocal task, shown
            if stage != shown:  # times are those of a stage
                bar.remove_task(task)
                task, shown = bar.add_task(stage, total=total, note=note), stage
            bar.update(task, completed=done, total=total, note=note)

        yield advance


class _Lines:
    """Progress where nobody watches: a thread prints where the work is, so that no stage of it is silent."""

    def __init__(self, description: str) -> None:
        self._stage = description
        self._state = "started"
        self._started = self._printed = time.monotonic()
        self._is_readable = True
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._print_now_and_then, daemon=True)

    def __enter__(self) -> _Lines:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def advance(
        self, done: int, total: int, note: str = "", *, stage: str | None = None, is_milestone: bool = False
    ) -> None:
        """Keep where the work is; print it if it is a milestone, or due."""
        self._stage = stage or self._stage
        self._state = f"{done}/{total}{', ' if note else ''}{note}"
        if is_milestone or time.monotonic() - self._printed >= LINE_SECONDS:
            self._print()
        if not self._is_readable:
            raise _reader_is_gone(sys.stderr)

    def _print_now_and_then(self) -> None:
        while not self._ended.wait(max(0.05, self._printed + LINE_SECONDS - time.monotonic())):
            if time.monotonic() - self._printed >= LINE_SECONDS:
                self._print()

    def _print(self) -> None:
        with self._lock:
            self._printed = time.monotonic()
            try:
                print(
                    f"{self._stage}: {self._state} ({self._printed - self._started:.0f} s)", file=sys.stderr, flush=True
                )
            except BrokenPipeError:
                self._is_readable = False


def print_figures(title: str, figures: Mapping[str, Any]) -> None:
    """Print names and values as two columns; a value that there is not is a dash."""
    print_table([(name, shown(value)) for name, value in figures.items()], title=title)


def print_table(rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows of equally many cells as columns, never cut, whatever the width of the terminal."""
    lines = [[printable(cell) for cell in row] for row in rows]
    widths = [max(cell_len(cell) for cell in column) for column in zip(*lines, strict=True)]
    if title is not None:
        out.print("\n" * title.startswith("\n") + printable(title.strip("\n")), style="italic")
    for line in lines:
        padded = [cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True)]
        out.print("  ".join(padded).rstrip())


def shown(value: Any, digits: int = 4) -> str:
    """Return a value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        is_small = 0 < abs(value) < 10 ** (1 - digits)
        return f"{value:.{digits - 1}g}" if is_small else f"{value:.{digits}f}"
    return str(value)


def printable(text: str) -> str:
    """Return a text with escapes for what is no character on a terminal: control codes, and bytes that are no text."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


def write_json(path: Path | None, content: Any) -> None:
    """Write a result as JSON, as a whole or not at all; nothing where no path was given, or by other processes."""
    if path is not None and is_main():
        write_result(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _exit_code(error: Exception) -> int | None:
    """Return 2 for bad input, 1 for a run that failed, None for a fault of the program."""
    # A diverged training is the second.
    if isinstance(error, MemoryError | FloatingPointError | ProcessLostError):
        return 1
    if isinstance(error, OSError):
        return 1 if error.errno in _DISK_ERRORS else 2
    if isinstance(error, ValueError | TypeError):
        return 2
    if isinstance(error, RuntimeError):
        from msf_kernels import BackendUnavailableError

        if isinstance(error, BackendUnavailableError):
            return 2
        if any(words in str(error) for words in _NO_MEMORY):
            return 1
        if str(error).startswith("MSF_"):  # an environment variable, which native code refused
            return 2
    return None


def _reader_is_gone(stream: TextIO) -> Interrupted:
    """Return what a broken pipe is here, and send what is still to come into it nowhere."""
    with suppress(OSError, ValueError):  # a stream that is no file, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return Interrupted(_SIGPIPE)


def _stop(error: BaseException, code: int) -> NoReturn:
    notes = getattr(error, "__notes__", [])
    if code != 128 + _SIGPIPE or notes:  # a command whose reader went away is silent, as others are
        what = "interrupted by SIGINT" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        if is_main() and isinstance(error, Interrupted | KeyboardInterrupt) and not notes:
            notes = ["nothing new is kept; the same command starts again"]
        text = " ".join(line.strip() for line in "; ".join([what, *notes]).splitlines())
        rank, n = place()
        who = f"msf: process {rank} of {n}:" if n > 1 else "msf:"
        with suppress(OSError):  # nobody is left to read it
            print(who, printable(text), file=sys.stderr, flush=True)
    sys.exit(code)
