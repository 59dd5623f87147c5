"""Whatever is wrong with a command line or its files: one line that names it, exit code 2, no traceback."""

import pytest

from tests.msf.cli.bad_inputs import BAD_INPUTS, Place, flag_cases

FLAGS = list(flag_cases())


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


def test_there_are_enough_of_them():
    assert len(BAD_INPUTS) >= 150
    assert len({case.name for case in BAD_INPUTS + FLAGS}) == len(BAD_INPUTS) + len(FLAGS)
