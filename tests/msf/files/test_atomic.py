import os
import stat

import pytest

from msf.files.atomic import write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_created_and_replaced(tmp_path):
    path = tmp_path / "report.txt"
    for text in ("first", "second"):
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text))
        assert path.read_text() == text
        assert names(tmp_path) == ["report.txt"]


def test_a_path_may_be_text(tmp_path):
    write_atomically(str(tmp_path / "a.bin"), lambda temporary: temporary.write_bytes(b"a"))
    assert (tmp_path / "a.bin").read_bytes() == b"a"


def test_the_old_content_is_there_until_the_writer_is_done(tmp_path):
    path = tmp_path / "state.pt"
    path.write_text("old")

    def writer(temporary):
        temporary.write_text("new, half")
        assert path.read_text() == "old"
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".pt"

    write_atomically(path, writer)
    assert path.read_text() == "new, half"


@pytest.mark.parametrize("exception", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_fails_changes_nothing_and_leaves_nothing(tmp_path, exception):
    path = tmp_path / "a.json"
    path.write_text("old")

    def writer(temporary):
        temporary.write_text("half")
        raise exception

    with pytest.raises(type(exception)) as caught:
        write_atomically(path, writer)
    assert caught.value is exception
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_writer_that_writes_nothing_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "a.json", lambda temporary: None)
    assert names(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder of .*nowhere"):
        write_atomically(tmp_path / "nowhere" / "a.json", lambda temporary: temporary.write_text("a"))


def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("a")
    write_atomically(tmp_path / "atomic", lambda temporary: temporary.write_text("a"))
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


@pytest.mark.skipif(os.name != "posix", reason="only POSIX says without harm whether a process lives")
def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    process = os.spawnv(os.P_NOWAIT, "/bin/true", ["true"])
    os.waitpid(process, 0)
    token = "0123456789abcdef" * 2
    left_behind = tmp_path / f".a.{process}-{token}.json"
    kept = [
        tmp_path / f".a.{os.getpid()}-{token}.json",  # its process lives
        tmp_path / f".b.{process}-{token}.json",  # of another file
        tmp_path / f".a.{process}-{token}.txt",
        tmp_path / ".a.json",
    ]
    for path in (left_behind, *kept):
        path.write_text("half")
    write_atomically(tmp_path / "a.json", lambda temporary: temporary.write_text("whole"))
    assert not left_behind.exists()
    assert all(path.exists() for path in kept)
