"""One training per folder, and a folder that cannot be one is named at once."""

import os
import subprocess
import sys

import pytest

from msf.files.claim import LOCK_FILE, claimed_folder


def hold_in_another_process(folder):
    script = (
        "import sys, time\nfrom msf.files.claim import claimed_folder\n"
        "with claimed_folder(sys.argv[1], 'training'):\n print('held', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_folder_is_made_and_removed_again_if_it_stays_empty(tmp_path):
    folder = tmp_path / "runs" / "a"
    with claimed_folder(folder, "training") as path:
        assert path == folder
        assert folder.is_dir()
    assert not folder.exists()


def test_what_was_written_stays_and_the_lock_does_not(tmp_path):
    with claimed_folder(str(tmp_path / "a"), "training") as path:
        (path / "state").write_text("1")
    assert os.listdir(tmp_path / "a") == ["state"]


def test_an_empty_folder_that_was_there_stays(tmp_path):
    with claimed_folder(tmp_path, "training"):
        pass
    assert tmp_path.is_dir()


def test_a_second_claim_is_refused_here_and_elsewhere_until_the_first_ends(tmp_path):
    process = hold_in_another_process(tmp_path / "a")
    try:
        with pytest.raises(ValueError, match="in use by another training"), claimed_folder(tmp_path / "a", "training"):
            pass
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert (tmp_path / "a" / LOCK_FILE).exists()  # what a kill leaves is only a file
    with (
        claimed_folder(tmp_path / "a", "training"),
        pytest.raises(ValueError, match="in use"),
        claimed_folder(tmp_path / "a", "training"),
    ):
        pass
    with claimed_folder(tmp_path / "a", "training"):
        pass


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_is_no_folder(tmp_path, name):
    (tmp_path / "file").write_text("a")
    with (
        pytest.raises(NotADirectoryError, match="folder must be a folder"),
        claimed_folder(tmp_path / name, "training"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "a"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written"), claimed_folder(tmp_path / "a", "training"):
        pass


@pytest.mark.parametrize("number", ["EACCES", "EPERM", "EROFS"])
def test_a_place_that_refuses_is_named(tmp_path, monkeypatch, number):
    import errno
    from pathlib import Path

    def refuse(*_, **__):
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match="cannot be written"), claimed_folder(tmp_path / "a", "training"):
        pass
