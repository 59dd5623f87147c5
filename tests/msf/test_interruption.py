"""Signals become an exception where they may, and wait where they would do harm."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from msf import interruption
from msf.interruption import SIGNALS, Interrupted, disturbed, interruptible, raise_if_requested, requested, undisturbed

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX sends them")


def send(number):
    os.kill(os.getpid(), number)


def interrupted(work, error=Interrupted):
    """Run something that an interruption, or another error, ends; return that."""
    with pytest.raises(error) as caught, interruptible():
        work()
    return caught.value


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_raised_at_once_with_its_conventional_code(number, code):
    done = []

    def work():
        send(number)
        done.append("too far")

    error = interrupted(work)
    assert done == []
    assert str(error) == f"interrupted by {number.name}"
    assert error.exit_code == code
    assert not isinstance(error, Exception)


def test_handlers_are_put_back_and_nothing_is_remembered():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(Interrupted), interruptible():
        send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert requested() is None
    with undisturbed():  # would raise what had been remembered
        pass


def test_without_handlers_the_blocks_do_nothing():
    with undisturbed(), disturbed(), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_a_signal_waits_for_the_end_of_an_undisturbed_block():
    done = []

    def work():
        with undisturbed():
            with undisturbed():
                send(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("too far")

    interrupted(work)
    assert done == ["inner", "outer"]


@pytest.mark.parametrize("is_before", [True, False])
def test_an_island_lets_signals_through(is_before):
    done = []

    def work():
        with undisturbed():
            if is_before:
                send(signal.SIGTERM)
            done.append("before")
            with disturbed():
                send(signal.SIGTERM)
                done.append("too far")

    interrupted(work)
    assert done == ["before"]


def test_an_error_in_an_undisturbed_block_arrives_as_it_is():
    def work():
        with undisturbed():
            send(signal.SIGTERM)
            raise ValueError("wrong")

    assert str(interrupted(work, ValueError)) == "wrong"


def test_a_second_signal_does_not_disturb_what_the_first_started():
    done = []

    def work():
        try:
            send(signal.SIGINT)
        finally:
            send(signal.SIGTERM)
            with undisturbed(is_last=True):
                send(signal.SIGINT)
                done.append("saved")

    assert interrupted(work).number == signal.SIGINT
    assert done == ["saved"]


def test_a_block_inside_another_leaves_the_request_and_the_handlers_alone():
    def work():
        with undisturbed(is_last=True):
            send(signal.SIGTERM)
        with interruptible():
            pass
        assert requested() == signal.SIGTERM
        raise_if_requested()

    assert interrupted(work).number == signal.SIGTERM


@pytest.mark.parametrize("number", SIGNALS)
def test_nothing_disturbs_the_clearing_up(number):
    """The exit handler was there before; it is run after that which keeps signals away."""
    script = (
        "import atexit, os, sys\nfrom msf.interruption import end_in_peace\n"
        f"atexit.register(lambda: (os.kill(os.getpid(), {int(number)}), print('cleared up')))\n"
        "end_in_peace()\nsys.exit(7)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "cleared up\n", "")


def test_a_signal_much_later_is_raised_again(monkeypatch):
    monkeypatch.setattr(interruption, "REPEAT_SECONDS", 0.0)
    caught = []

    def work():
        try:
            send(signal.SIGINT)
        except Interrupted as error:
            caught.append(error)
        send(signal.SIGINT)
        caught.append("too far")

    again = interrupted(work)
    assert len(caught) == 1
    assert again is not caught[0]


def test_an_interruption_that_got_lost_is_raised_at_the_next_block():
    done = []

    def work():
        with contextlib.suppress(Interrupted):  # as the interpreter does in a destructor
            send(signal.SIGTERM)
        with undisturbed():
            done.append("too far")

    interrupted(work)
    assert done == []


def test_ignored_signals_stay_ignored():
    """As under nohup."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            send(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_another_thread_installs_nothing():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with interruptible(), undisturbed():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_importing_and_training_in_a_library_install_nothing():
    script = (
        "import signal; import msf.training.train, msf.autoencoder.train, msf.cli\n"
        "assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL\n"
        "assert signal.getsignal(signal.SIGINT) == signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
