"""What commands print: one line for whatever ends them, and progress in a pipe."""

import errno
import os
import signal
import sys
import time

import pytest

from msf.cli import console
from msf.interruption import Interrupted, interruptible, requested


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("x must be 1"), 2, "x must be 1"),
        (TypeError("x must be a number"), 2, "x must be a number"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.npz"), 2, "a.npz"),
        (OSError(errno.ENOSPC, "No space left on device", "state"), 1, "'state'"),
        (FloatingPointError("the loss is nan"), 1, "the loss is nan"),
        (MemoryError(), 1, "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "can't allocate memory"),
        (KeyboardInterrupt(), 130, "interrupted by SIGINT"),
        (ValueError("two\n  lines  "), 2, "two lines"),
        (ValueError("a\x1b[31mred\x07.npz"), 2, "a\\x1b[31mred\\x07.npz"),
        (RuntimeError("MSF_CPU_LEVEL must be baseline"), 2, "MSF_CPU_LEVEL must"),
    ],
)
def test_errors(capsys, error, code, words):
    error.add_note("a is kept")
    with pytest.raises(SystemExit) as ended, console.errors_as_one_line():
        raise error
    assert ended.value.code == code
    line = capsys.readouterr().err
    assert line.startswith("msf: ")
    assert line.count("\n") == 1
    assert words in line
    assert line.endswith("; a is kept\n")


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), console.errors_as_one_line():
        raise RuntimeError("a bug")


def test_a_reader_that_went_away(capsys):
    with pytest.raises(SystemExit) as ended, console.errors_as_one_line():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert ended.value.code == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "is_named"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (MemoryError(), True),
        (KeyboardInterrupt(), True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("x"), False),
        (FloatingPointError("diverged"), False),
    ],
)
def test_only_what_can_go_on_names_a_command(monkeypatch, error, is_named):
    monkeypatch.setattr(sys, "argv", ["msf", "train", "--out", "a b"])
    with pytest.raises(type(error)) as caught, console.resumable():
        raise error
    notes = getattr(caught.value, "__notes__", [])
    assert ("go on with: msf train --out 'a b' --resume" in notes) == is_named


def test_a_pipe_gets_milestones_at_once_and_other_lines_when_they_are_due(capsys, monkeypatch):
    with console.progress_bar("working", lines=True) as advance:
        advance(1, 4)
        advance(2, 4, "loss 1", stage="training", is_milestone=True)
        advance(3, 4)
        monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
        advance(4, 4)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training: 2/4, loss 1 (")
    assert any(line.startswith("training: 4/4 (") for line in lines[1:])
    assert not any(": 1/4" in line for line in lines)


def test_a_line_comes_though_nothing_advances(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.1)
    with console.progress_bar("working", lines=True):
        time.sleep(0.5)
    assert capsys.readouterr().err.count("working: started (") >= 2


def test_other_commands_are_silent_in_a_pipe(capsys, monkeypatch):
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    with console.progress_bar("working") as advance:
        advance(1, 4, "note", stage="other", is_milestone=True)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "err", console._Console(stderr=True))
    with console.progress_bar("working", lines=True) as advance:
        advance(1, 4, "loss 1", stage="training", is_milestone=True)
        time.sleep(0.3)
    assert "training" in terminal.getvalue()
    assert "\x1b" in terminal.getvalue()


def test_progress_into_a_pipe_that_nobody_reads_interrupts(monkeypatch):
    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        def flush(self):
            pass

        def fileno(self):
            raise OSError("no file")

    monkeypatch.setattr(sys, "stderr", Closed())
    with console.progress_bar("working", lines=True) as advance, pytest.raises(Interrupted) as caught:
        advance(1, 4, is_milestone=True)
    assert caught.value.exit_code == 141


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (1, "1"), (True, "True"), ("[red]x", "[red]x"), (0.0, "0.0000"), (1.23456, "1.2346"),
        (1e-5, "1e-05"), (-2.5e-7, "-2.5e-07"), (float("nan"), "nan"), (123456.0, "123456.0000"),
    ],
)  # fmt: skip
def test_values_are_shown_in_full_and_small_ones_not_as_zero(value, text):
    assert console.shown(value) == text


def test_figures_are_columns_whatever_they_hold(capsys):
    console.print_figures("\nTitle [b]x", {"a": None, "[red]long name": "y" * 200, "中": 0.5})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Title [b]x",
        "a               -",
        "[red]long name  " + "y" * 200,
        "中              0.5000",
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain é中", "plain é中"), ("a\nb\tc", "a\\nb\\tc"), ("\x1b[31m", "\\x1b[31m"), ("\udcff", "\\udcff")],
)
def test_what_is_no_character_is_shown_as_an_escape(text, shown):
    assert console.printable(text) == shown


@pytest.mark.parametrize("lines", [True, False])
def test_a_signal_whose_exception_got_lost_is_raised_at_the_next_progress(monkeypatch, lines):
    class Swallows:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with interruptible(), console.progress_bar("working", lines=lines) as advance:
        advance(1, 3)
        monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
        Swallows()
        monkeypatch.undo()
        assert requested() == signal.SIGTERM
        with pytest.raises(Interrupted):
            advance(2, 3)
