"""The file that a training goes on from."""

import errno

import pytest
import torch

from msf.files.state import StateFile, read_state, write_state


def state_file(folder, *, configuration=None, data="d"):
    configuration = {"train": {"rate": 0.1, "sizes": (1, 2)}} if configuration is None else configuration
    return StateFile(folder, "experiment", configuration, {"data_fingerprint": (data, "on other data")})


def test_what_was_saved_comes_back(tmp_path):
    file = state_file(tmp_path)
    assert file.restore((), resume=False) is None
    assert file.kept(9) == "nothing of the training is saved"
    file.save({"network": {"w": torch.ones(2)}, "n": 3}, step=4)
    assert "up to step 4 of 9" in file.kept(9)
    state = state_file(tmp_path).restore(("network", "n"), resume=True)
    assert state["n"] == 3
    assert torch.equal(state["network"]["w"], torch.ones(2))
    file.path.unlink()
    assert file.kept(9) == "nothing of the training is saved"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_saved_and_named(tmp_path, bad):
    file = state_file(tmp_path)
    file.save({"w": torch.ones(1)}, step=1)
    with pytest.raises(FloatingPointError, match=r"optimizer\.state\.0\.v holds"):
        file.save({"optimizer": {"state": {0: {"v": torch.tensor([1, bad])}}}}, step=2)
    assert "step 1 of 2" in file.kept(2)
    assert "w" in read_state(file.path)


@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
def test_a_full_disk_is_an_error_of_the_system_that_names_the_file(tmp_path, monkeypatch, where):
    import os
    from pathlib import Path

    file = state_file(tmp_path)
    file.save({"w": torch.zeros(1000)}, step=1)
    before = file.path.read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "write":
        monkeypatch.setattr(Path, "write_bytes", full)
    elif where == "open":
        monkeypatch.setattr("io.open", full)
    else:
        monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match=r"No space left on device: '.*training_state\.pt'") as caught:
        file.save({"w": torch.ones(1000)}, step=2)
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert file.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["training_state.pt"]
    assert "step 1 of 2" in file.kept(2)


def test_a_state_without_resume_names_the_flag(tmp_path):
    state_file(tmp_path).save({}, step=1)
    with pytest.raises(ValueError, match=r"resume it with --resume \(resume=True\)"):
        state_file(tmp_path).restore((), resume=False)


@pytest.mark.parametrize(
    ("configuration", "words"),
    [
        ({"train": {"rate": 0.2, "sizes": [1, 2]}}, r"train\.rate was 0\.1, now 0\.2\."),
        ({"train": {"rate": 0.1, "sizes": [1]}}, r"train\.sizes was \[1, 2\], now \[1\]\."),
        ({"train": {"rate": 0.1, "sizes": [1, 2], "new": 1}}, r"train\.new was None, now 1\."),
        ({}, "train was {.*}, now None"),
    ],
)
def test_another_configuration_names_what_differs(tmp_path, configuration, words):
    state_file(tmp_path).save({}, step=1)
    with pytest.raises(ValueError, match=f"another configuration: {words}"):
        state_file(tmp_path, configuration=configuration).restore((), resume=True)


def test_other_sources_and_other_kinds_are_refused(tmp_path):
    state_file(tmp_path).save({}, step=1)
    with pytest.raises(ValueError, match="holds a run on other data than now"):
        state_file(tmp_path, data="e").restore((), resume=True)
    with pytest.raises(ValueError, match="it has no network"):
        state_file(tmp_path).restore(("network",), resume=True)
    other = StateFile(tmp_path, "settings", {}, {})
    with pytest.raises(ValueError, match="of a training of this kind; it has no settings"):
        other.restore((), resume=True)


def test_equal_configurations_may_be_tuples_or_lists(tmp_path):
    state_file(tmp_path).save({}, step=1)
    same = {"train": {"rate": 0.1, "sizes": [1, 2]}}
    assert state_file(tmp_path, configuration=same).restore((), resume=True) is not None


def test_something_else_than_a_dictionary(tmp_path):
    path = tmp_path / "training_state.pt"
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="must be an intact training state; got list"):
        read_state(path)
    write_state(path, {"a": 1})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="intact training state"):
        read_state(path)
