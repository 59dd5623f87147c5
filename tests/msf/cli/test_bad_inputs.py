"""Whatever is wrong with a command line or its files: one line that names it, exit code 2, no traceback."""

import itertools

import pytest

from tests.msf.bad_files import BAD_FILES
from tests.msf.cli.bad_inputs import BAD_INPUTS, BadInput, Place, flag_cases

FLAGS = list(flag_cases())

# The commands that read a file of a kind; its message is that of the reader, which the reader's own tests look into.
READ_BY = {
    "npz": [
        lambda place, path: place.evaluate("--dataset", path),
        lambda place, path: place.train("--dataset", path),
    ],
    "checkpoint": [
        lambda place, path: place.evaluate("--checkpoint", path),
        lambda place, path: ["generate", "--checkpoint", path, "--device", "cpu", "--out", place.folder / "out"],
        lambda place, path: ["classify", place.picture(), "--checkpoint", path, "--device", "cpu"],
        lambda place, path: ["info", "--checkpoint", path],
        lambda place, path: ["report", path, "--device", "cpu"],
    ],
    "official": [lambda place, path: place.import_official(path, "--n-classes", "8", "--head-channels", "32")],
    "training_state": [lambda place, path: place.train("--resume", "--out", path.parent)],
    "picture": [lambda place, path: place.classify(path)],
}


def file_cases():
    """Yield a command line for every bad file of a kind that commands read: its commands take turns."""
    for kind, commands in READ_BY.items():
        for bad, command in zip((bad for bad in BAD_FILES if bad.kind == kind), itertools.cycle(commands)):
            yield BadInput(str(bad), lambda place, b=bad, c=command: c(place, b.make(empty_folder(place))), "")


def empty_folder(place):
    (place.folder / "bad").mkdir()
    return place.folder / "bad"


FILES = list(file_cases())


@pytest.fixture
def place(tmp_path, tiny_run, tiny_npz, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MSF_DATA", raising=False)
    return Place(tmp_path, tiny_run, tiny_npz)


def check(case, place, msf):
    code, out, err = msf(*case.make(place))
    assert code == 2, err
    lines = [line for line in err.splitlines() if line.startswith("msf: ")]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0]
    assert case.word in lines[0]
    assert "Traceback" not in out + err
    assert out == ""


@pytest.mark.parametrize("case", BAD_INPUTS, ids=str)
def test_bad_input_ends_with_one_line(case, place, msf):
    check(case, place, msf)


@pytest.mark.parametrize("case", FLAGS, ids=str)
def test_wrong_flags_end_with_one_line(case, place, msf):
    check(case, place, msf)


@pytest.mark.parametrize("case", FILES, ids=str)
def test_a_bad_file_ends_with_one_line(case, place, msf):
    code, out, err = msf(*case.make(place))
    assert code == 2, err
    assert [line.startswith("msf: ") for line in err.splitlines()] == [True], err


def test_there_are_enough_of_them():
    assert len(BAD_INPUTS) >= 150
    assert len({case.name for case in BAD_INPUTS + FLAGS}) == len(BAD_INPUTS) + len(FLAGS)
