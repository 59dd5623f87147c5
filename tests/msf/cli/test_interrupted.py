"""Commands that train, in processes of their own: signals, full disks, two in one folder, and what a pipe shows."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX sends them"),
    pytest.mark.slow,
]

MSF = [sys.executable, "-c", "from msf.cli import main; main()"]
TALKATIVE = [sys.executable, "-c", "import msf.cli as m; m.console.LINE_SECONDS = 0.2; m.main()"]  # lines come early
NETWORK = {
    "image-size": 8, "code": "simplex", "base-channels": 32, "channel-multipliers": 1, "n-res-blocks": 1,
    "attention-down-rates": 1, "head-channels": 32, "batch-size": 16, "validation-samples": 1, "validate-every": 1,
    "precision": "fp32",
}  # fmt: skip
AUTOENCODER = {"image-size": 8, "block-channels": "8,8", "batch-size": 8, "colour-steps": 2}


def command(name, dataset, folder, epochs):
    flags = {"dataset": dataset, "out": folder, "epochs": epochs, "device": "cpu"}
    flags |= {"train": NETWORK, "train-autoencoder": AUTOENCODER}[name]
    return [name, *(f"--{flag}={value}" for flag, value in flags.items())]


def start(arguments, program=MSF, **options):
    return subprocess.Popen(
        [*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def wait_for(process, words):
    """Read what the process says until a line with these words."""
    for line in process.stderr:
        if words in line:
            return line
    raise AssertionError(f"the process ended with {process.wait()} before it said {words!r}")


def told(text):
    """Return the one line of the program's own; nothing else may be there but progress."""
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("msf: ")]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize(
    ("name", "number", "code"),
    [
        ("train", signal.SIGINT, 130),
        ("train", signal.SIGTERM, 143),
        ("train", signal.SIGHUP, 129),
        ("train-autoencoder", signal.SIGTERM, 143),
    ],
)
def test_a_signal_says_what_is_saved_and_the_command_that_goes_on(tiny_npz, tmp_path, name, number, code):
    folder = tmp_path / "a run"
    process = start(command(name, tiny_npz, folder, 300), TALKATIVE)
    wait_for(process, "training ")
    process.send_signal(number)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    line = told(err)
    assert line.startswith(f"msf: interrupted by {number.name}; '{folder}/training_state.pt' keeps the training up to")
    assert shlex.split(line.partition("go on with: ")[2]) == [
        "msf",
        *command(name, tiny_npz, folder, 300),
        "--resume",
    ]


def test_a_signal_while_data_are_read(tiny_npz, tmp_path):
    script = (
        "import sys, time, msf.data\n"
        "def load(*_, **__):\n print('loading', file=sys.stderr, flush=True); time.sleep(60)\n"
        "msf.data.load_dataset = load\nfrom msf.cli import main; main()"
    )
    process = start(command("train", tiny_npz, tmp_path / "a", 1), [sys.executable, "-c", script])
    wait_for(process, "loading")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the training had not begun" in told(err)
    assert "--resume" in told(err)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_program_is_imported_and_one_while_it_clears_up(number):
    script = (
        "import atexit, os, runpy, sys\n"
        f"send = lambda: os.kill(os.getpid(), {int(number)})\n"
        "class Finder:\n"
        " def find_spec(self, name, *_):\n"
        "  if name == 'msf.cli': atexit.register(send); send()\n"
        "sys.meta_path.insert(0, Finder())\nsys.argv = ['msf', 'info']\n"
        "runpy.run_module('msf', run_name='__main__')"
    )
    process = start([], [sys.executable, "-c", script])
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    assert err == f"msf: interrupted by {number.name}; nothing new is kept; the same command starts again\n"


def test_a_second_training_in_one_folder_is_refused_until_the_first_is_killed(tiny_npz, tmp_path):
    arguments = command("train", tiny_npz, tmp_path, 300)
    first = start(arguments, TALKATIVE)
    wait_for(first, "training ")
    second = start([*arguments, "--resume"])
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert "in use by another training" in told(err)
    first.kill()
    first.communicate()
    again = start([*arguments, "--resume"], TALKATIVE)
    wait_for(again, "training ")
    again.terminate()
    again.communicate(timeout=60)
    assert again.returncode == 143


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a disk of its own, and a function that makes that larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = "size=5m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=50m", folder], check=True)
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_runs_full(tiny_npz, small_disk):
    """There is room for the first state, and not for a second one beside it."""
    disk, enlarge = small_disk
    arguments = command("train", tiny_npz, disk / "run", 2)
    process = start(arguments)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    line = told(err)
    assert "No space left on device" in line
    assert "keeps the training up to step 2 of 4, model.safetensors beside it the best epoch so far" in line
    going_on = shlex.split(line.partition("go on with: ")[2])
    assert going_on == ["msf", *arguments, "--resume"]
    enlarge()
    process = start(going_on[1:])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "n_epochs" in out


def test_a_disk_that_is_full_from_the_start(tiny_npz, small_disk):
    disk, _ = small_disk
    with contextlib.suppress(OSError), (disk / "filler").open("wb") as file:
        file.write(bytes(2**23))
    process = start(command("train", tiny_npz, disk / "run", 1))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "No space left on device" in told(err)
    assert "nothing of the training is saved" in told(err)


@pytest.mark.parametrize(
    ("name", "epoch_ends"), [("train", ["2/6", "4/6", "6/6"]), ("train-autoencoder", ["4/12", "8/12", "12/12"])]
)
def test_a_pipe_gets_a_line_per_epoch_and_no_bar(tiny_npz, tmp_path, name, epoch_ends):
    process = start(command(name, tiny_npz, tmp_path / "a", 3))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = [line for line in err.splitlines() if "loss" in line and "validating" not in line]
    for steps in epoch_ends:  # a slow machine adds its lines of every 30 seconds
        assert any(f": {steps}, " in line for line in lines), err
    assert "\x1b" not in err


def test_no_stage_is_silent(tiny_npz, tmp_path):
    """Each is held up; a line still comes every so often."""
    script = (
        "import time, msf.data, msf.training.train, msf.cli\nmsf.cli.console.LINE_SECONDS = 0.2\n"
        "def hold_up(module, name):\n"
        " original = getattr(module, name)\n"
        " setattr(module, name, lambda *a, **k: (time.sleep(1), original(*a, **k))[1])\n"
        "hold_up(msf.data, 'load_dataset')\n"
        "hold_up(msf.training.step, 'symmetric_path')\nhold_up(msf.training.validation.Validation, 'metrics')\n"
        "msf.cli.main()"
    )
    process = start(command("train", tiny_npz, tmp_path / "a", 1), [sys.executable, "-c", script])
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("reading ") >= 3
    assert err.count("started") >= 3
    assert err.count("training on tiny: 2/2, epoch 1 of 1, loss") >= 3


def test_a_reader_that_goes_away_ends_the_training_with_its_state(tiny_npz, tmp_path):
    process = start(command("train", tiny_npz, tmp_path, 300), TALKATIVE)
    wait_for(process, "training ")
    process.stderr.close()
    process.stdout.read()
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    assert (tmp_path / "training_state.pt").exists()
    process.stdout.close()


def test_a_reader_of_results_that_goes_away_is_no_error():
    process = start(["info"])
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 128 + signal.SIGPIPE
    process.stderr.close()
