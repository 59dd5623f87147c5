"""Which files of a folder are pictures, what is said of the others, and that a search ends."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from msf.data import find_images, search_images
from msf.data.picture_files import described, readable_suffixes
from msf.report import write_figure


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(path, format="PNG")
    return path


def names(found, root):
    return [str(path.relative_to(root)) for path in found.files]


def test_folders_are_searched_at_every_depth_in_the_order_of_names(tmp_path):
    wanted = ["a/b/c/d/e/1.png", "a/b/2.PNG", "a.png", "b/1.tiff", "z.jpeg"]
    for name in wanted:
        picture(tmp_path / name)
    found = search_images([tmp_path])
    assert names(found, tmp_path) == ["a/b/2.PNG", "a/b/c/d/e/1.png", "a.png", "b/1.tiff", "z.jpeg"]
    assert (found.failures, dict(found.skipped)) == ({}, {})


def test_files_that_are_named_are_taken_whatever_their_names_and_in_the_order_given(tmp_path):
    files = [picture(tmp_path / name) for name in ("z.dat", ".hidden", "a.png")]
    assert search_images(files).files == files
    assert find_images(files) == files


@pytest.mark.parametrize("suffix", [".gif", ".jp2", ".ppm", ".pgm", ".tga", ".bmp", ".JPG", ".webp", ".j2k"])
def test_every_format_that_pillow_decodes_is_taken(tmp_path, suffix):
    file = picture(tmp_path / f"a{suffix}")
    assert suffix.lower() in readable_suffixes()
    assert search_images([tmp_path]).files == [file]


def test_what_is_skipped_is_counted_by_kind(tmp_path):
    for name in ("1.png", "._1.png", ".DS_Store", ".cache/2.png", "deep/._3.png"):
        picture(tmp_path / name)
    for name in ("a.txt", "b.txt", "c.csv", "README", "scan.dcm", "brain.nii.gz", "drawing.eps"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("IM0001", "DICOMDIR"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    found = search_images([tmp_path])
    assert names(found, tmp_path) == ["1.png", "IM0001", "scan.dcm"]
    assert found.skipped == {
        "hidden": 4,
        ".txt": 2,
        ".csv": 1,
        ".eps": 1,
        "without suffix": 2,
        "NIfTI and the like (name one to see the command that makes slices of it)": 1,
    }
    assert described(found.skipped).startswith("4 hidden, 2 .txt, 2 without suffix")
    assert described({f".{n}": n for n in range(1, 10)}) == "9 .9, 8 .8, 7 .7, 6 .6, 5 .5, 4 .4, 6 others"


def test_links_are_followed_to_files_and_not_to_folders_so_that_a_search_ends(tmp_path):
    outside = picture(tmp_path / "outside" / "1.png")
    root = tmp_path / "root"
    inside = picture(root / "b.png")
    (root / "a_loop").symlink_to(root)
    (root / "b_out").symlink_to(outside.parent)
    (root / "c_again.png").symlink_to("b.png")
    (root / "d_out.png").symlink_to(outside)
    (root / "e_nothing.png").symlink_to("none.png")
    (root / "f_self.png").symlink_to("f_self.png")
    found = search_images([root])
    assert names(found, root) == ["b.png", "d_out.png", "e_nothing.png", "f_self.png"]
    assert list(found.failures) == [2, 3]
    assert all("link to nothing" in reason for reason in found.failures.values())
    assert found.skipped["links to folders (name them to have them searched)"] == 2
    assert found.skipped["named twice, or links to another picture"] == 1
    assert search_images([root / "b_out"]).files == [root / "b_out" / "1.png"]
    assert inside in found.files


def test_a_picture_that_is_named_twice_is_taken_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "d" / "a.png")
    found = search_images([Path("d/a.png"), Path("./d/a.png"), tmp_path / "d", Path("none.png"), Path("none.png")])
    assert found.files == [Path("d/a.png"), Path("none.png")]
    assert list(found.failures) == [1]
    assert found.skipped == {"named twice, or links to another picture": 3}


def test_what_cannot_be_read_keeps_its_place_and_is_told(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    good = picture(tmp_path / "good.png")
    paths = [tmp_path / "none.png", good, empty, tmp_path / "pipe.png", good / "below.png", Path("/dev/null")]
    found = search_images(paths)
    assert found.files == paths
    assert [number for number in range(len(paths)) if number not in found.failures] == [1]
    for number, words in enumerate(("does not exist", "", "holds no pictures", "a pipe", "cannot be read", "a device")):
        assert words in found.failures.get(number, "")
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        find_images(paths)


def test_a_socket_among_pictures_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "b.png")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("a.png")
        found = search_images([Path()])
    assert found.files == [Path("a.png"), Path("b.png")]
    assert "a socket" in found.failures[0]


def test_a_folder_that_may_not_be_searched_is_told_and_the_rest_is_found(tmp_path, monkeypatch):
    picture(tmp_path / "closed" / "a.png")
    picture(tmp_path / "open" / "b.png")
    listed = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = search_images([tmp_path])
    assert names(found, tmp_path) == ["closed", "open/b.png"]
    assert "cannot be searched: Permission denied" in found.failures[0]


def test_a_name_that_is_no_text_is_found(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    picture(tmp_path / name)
    assert names(search_images([tmp_path]), tmp_path) == [name]


def test_figures_are_told_from_pictures_by_their_mark(tmp_path):
    mine = picture(tmp_path / "a.png")
    write_figure(tmp_path / "grid.png", Figure())
    write_figure(tmp_path / "renamed.png", Figure())
    theirs = tmp_path / "plot.png"
    Figure().savefig(theirs)
    found = search_images([tmp_path])
    assert found.files == [mine, theirs]
    assert found.skipped == {"figures drawn by msf": 2}
    assert search_images([tmp_path / "grid.png"]).files == [tmp_path / "grid.png"]  # who names it means it


@pytest.mark.parametrize("beside", ["00-0000.png", "patient-1.png"])
def test_an_unmarked_grid_is_skipped_only_beside_generated_pictures(tmp_path, beside):
    file = picture(tmp_path / beside)
    Figure().savefig(tmp_path / "grid.png")
    assert search_images([tmp_path]).files == [file] if beside == "00-0000.png" else [tmp_path / "grid.png", file]
