"""Folders and tables of labelled pictures: what they say, and what is wrong with them before anything is decoded."""

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from msf.data import picture_files
from msf.data.listing import name_classes, read_listing
from msf.data.sources import Entry, is_source, open_source, table_files


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def table(path, rows, delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def test_a_folder_per_class_is_read_at_every_depth_in_the_order_of_names(tmp_path):
    touch(tmp_path, "b/2.png", "a/deep/er/1.jpg", "a/0.tif", "a/notes.txt", "b/.hidden.png")
    source = open_source(tmp_path)
    assert not source.has_splits
    found = [(Path(entry.file).name, entry.label, entry.split) for entry in source.entries()]
    assert found == [("0.tif", "a", None), ("1.jpg", "a", None), ("2.png", "b", None)]
    assert source.skipped == {".txt": 1, "hidden": 1}


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "valid", "Testing"), ("TRAIN", "dev", "test")]
)
def test_splits_above_classes_are_known_by_their_usual_names(tmp_path, names):
    for name in names:
        touch(tmp_path, f"{name}/x/1.png", f"{name}/y/2.png")
    source = open_source(tmp_path)
    assert source.has_splits
    assert sorted({entry.split for entry in source.entries()}) == ["test", "train", "val"]
    assert {entry.label for entry in source.entries()} == {"x", "y"}


def test_classes_beside_a_split_are_classes(tmp_path):
    touch(tmp_path, "train/1.png", "plane/2.png")
    assert {entry.label for entry in open_source(tmp_path).entries()} == {"train", "plane"}


def test_a_picture_in_no_class_folder_is_told(tmp_path):
    touch(tmp_path, "loose.png", "notes.txt", "a/1.png", "b/2.png")
    listing = read_listing(open_source(tmp_path))
    assert list(listing.errors) == [0]
    assert "loose.png' lies in no class folder" in listing.errors[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_tables_of_every_form_say_the_same(tmp_path, delimiter, encoding):
    rows = [
        ("Path", "CLASS", "patient_id", "Split", "age"),
        ("a/ä.png", "x, y", "7", "test", "40"),
        ("/b.png", "z", "", "train", ""),
    ]
    source = open_source(table(tmp_path / "t.csv", rows, delimiter, encoding))
    assert source.details == ("age",)
    assert list(source.entries()) == [
        Entry(str(tmp_path / "a/ä.png"), "x, y", "test", "7", None, ("40",)),
        Entry("/b.png", "z", "train", None, None, ("",)),
    ]


def test_parquet_says_the_same_as_csv(tmp_path):
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    columns = {"file": ["a.png", "b.png", None], "label": [0, 1, 1], "group": [1.0, None, 3.0], "note": ["x", None, ""]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    rows = [tuple(columns), ("a.png", "0", "1", "x"), ("b.png", "1", "", ""), ("", "1", "3", "")]
    table(tmp_path / "t.csv", rows)
    of_csv, of_parquet = (list(open_source(tmp_path / f"t.{suffix}").entries()) for suffix in ("csv", "parquet"))
    assert [entry._replace(error=None) for entry in of_parquet] == [entry._replace(error=None) for entry in of_csv]
    assert "names no file" in of_parquet[2].error


def test_rows_without_a_label_and_files_named_twice_are_told(tmp_path):
    rows = [
        ("file", "label"),
        ("a.png", "x"),
        ("b.png", ""),
        ("a.png", "x"),
        ("./a.png", "y"),
        ("", "x"),
        ("c.png", "y"),
    ]
    listing = read_listing(open_source(table(tmp_path / "t.csv", rows)))
    words = ("has no label (row 2", "named twice, in rows 1 and 3", "in rows 1 and 4, with two labels", "row 5 of")
    assert list(listing.errors) == [1, 2, 3, 4]
    assert all(word in listing.errors[number] for number, word in enumerate(words, start=1))


def test_columns_may_be_named(tmp_path):
    rows = [("image_id", "file", "dx", "label"), ("a.png", "no", "x", "no")]
    path = table(tmp_path / "t.csv", rows)
    (entry,) = open_source(path, {"file": "image_id", "label": "DX"}).entries()
    assert (entry.file, entry.label) == (str(tmp_path / "a.png"), "x")
    assert entry.details == ("no", "no")


def test_links_out_of_a_folder_are_followed_to_files_and_not_to_folders(tmp_path):
    outside = touch(tmp_path / "out", "1.png", "deep/2.png")
    root = touch(tmp_path / "root", "a/0.png", "b/9.png")
    (root / "a" / "link.png").symlink_to(outside / "1.png")
    (root / "a" / "folder").symlink_to(outside / "deep")
    (root / "b" / "again.png").symlink_to(root / "a" / "0.png")
    (root / "b" / "nothing.png").symlink_to(root / "gone.png")
    source = open_source(root)
    listing = read_listing(source)
    assert [Path(file).name for file in listing.files] == ["0.png", "link.png", "9.png", "nothing.png"]
    assert "link to nothing" in listing.errors[3]
    assert source.skipped["named twice, or links to another picture"] == 1


BAD_TABLES = {
    "no columns": ([("a.png", "x")], "must have a column for the file"),
    "no label": ([("file", "x"), ("a.png", "1")], "must have a column for the label"),
    "two files": ([("file", "path", "label"), ("a", "b", "x")], "has file, path: say which of them is the file"),
    "a column twice": ([("file", "label", "Label"), ("a", "b", "x")], "must name each column once"),
    "nothing": ([], "its first line is empty"),
    "only names": ([("file", "label")], "holds no pictures"),
    "a short row": ([("file", "label"), ("a.png", "x"), ("b.png",)], "row 2 of .* must have 2 cells"),
    "one class": ([("file", "label"), ("a.png", "x"), ("b.png", "x")], "must have two classes or more; it has x"),
    "case": (
        [("file", "label"), ("a.png", "Benign"), ("b.png", "benign")],
        "'Benign' and 'benign', which differ in case",
    ),
    "spaces": (
        [("file", "label"), ("a.png", "no sign"), ("b.png", "no  sign"), ("c", "z")],
        "differ in case or spaces",
    ),
    "an unknown split": (
        [("file", "label", "split"), ("a", "x", "train"), ("b", "y", "holdout")],
        "row 2 of .* says 'holdout'",
    ),
    "a missing split": (
        [("file", "label", "split"), ("a", "x", "train"), ("b", "y", "")],
        "for every picture, or for none; it has none for 1",
    ),
    "a torn patient": (
        [
            ("file", "label", "split", "patient"),
            ("a", "x", "train", "P1"),
            ("b", "y", "train", "P2"),
            ("c", "x", "test", "P1"),
        ],
        "every group in one split; 1 are in several, such as 'P1' in train and test",
    ),
    "a class without training": (
        [("file", "label", "split"), ("a", "x", "train"), ("b", "y", "test"), ("c", "z", "train")],
        "train; 'y' is missing",
    ),
    "no files at all": ([("file", "label"), ("", "x"), ("", "y")], "none of 2 pictures can be taken; row 1"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_one_sentence(tmp_path, name):
    rows, words = BAD_TABLES[name]
    with pytest.raises(ValueError, match=words):
        read_listing(open_source(table(tmp_path / "t.csv", rows)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,label\nä.png,x\n".encode("latin1"), "must be UTF-8: save it as such"),
        ("file,label\na.png,x\n".encode("utf-16"), "must be UTF-8"),
        (b'file,label\n"a.png,x\nb.png,y\n', "cannot be read as CSV"),
    ],
)
def test_a_table_that_is_no_text_is_one_sentence(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_listing(open_source(tmp_path / "t.csv"))


def test_what_is_no_source_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="must hold a folder of pictures per class"):
        open_source(tmp_path)
    touch(tmp_path, "a/1.png")
    with pytest.raises(ValueError, match="columns are of a table"):
        open_source(tmp_path, {"file": "x"})
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="cannot be read as a Parquet table"):
        open_source(tmp_path / "t.parquet")
    assert [is_source(path) for path in (tmp_path, "t.CSV", "", "bloodmnist", "a.npz")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'medsymmflow\[parquet\]'"):
        open_source(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("found", "wanted", "names", "codes"),
    [
        (["b", "a"], None, ("a", "b"), [1, 0]),
        (["10", "9", "2"], None, ("2", "9", "10"), [2, 1, 0]),
        (["B ", "a"], ("c", "b", "A"), ("c", "b", "A"), [1, 2]),
        (["b", "a"], ("bad", "good"), ("bad", "good"), [1, 0]),
        (["2", "0"], ("x", "y", "z"), ("x", "y", "z"), [2, 0]),
    ],
)
def test_classes_are_ordered_and_renamed(found, wanted, names, codes):
    assert name_classes(found, wanted, "here") == (names, codes)


@pytest.mark.parametrize("wanted", [("a", "x"), ("x", "y", "z"), ("a", "A"), ("a", ""), ("b", "pnuemonia")])
def test_class_names_that_could_mean_another_class_are_refused(wanted):
    with pytest.raises(ValueError, match="class-names must"):
        name_classes(["a", "b"], wanted, "here")


def test_names_of_a_network_hold_where_the_source_has_no_others(tmp_path):
    touch(tmp_path, "Cat/1.png", "dog/2.png")
    source = open_source(tmp_path)
    assert read_listing(source, known_names=("dog", "bird", "cat")).class_names == ("dog", "bird", "cat")
    assert read_listing(source, known_names=("dog", "bird")).class_names == ("Cat", "dog")
    assert list(read_listing(source, known_names=("dog", "bird", "cat")).labels) == [2, 0]


def test_one_class_is_enough_to_test_on(tmp_path):
    touch(tmp_path, "a/1.png", "a/2.png")
    assert read_listing(open_source(tmp_path), only_test=True).class_names == ("a",)


def test_a_table_of_files_alone_is_enough_where_labels_are_not_wanted(tmp_path):
    path = table(tmp_path / "t.csv", [("file", "note"), ("a.png", ""), ("/b.png", "x")])
    assert list(table_files(path)) == [tmp_path / "a.png", Path("/b.png")]


class FakeEntry:
    def __init__(self, folder, name):
        self.name, self.path = name, f"{folder}/{name}"

    def is_dir(self, *, follow_symlinks=True):
        return False

    def is_file(self, *, follow_symlinks=True):
        return True

    def is_symlink(self):
        return False


N_MANY = 20_000
BYTES_PER_FILE = 1500


def test_memory_per_file_of_a_folder_is_bounded(tmp_path, monkeypatch):
    class Listed:
        def __init__(self, folder):
            self.folder = folder

        def __enter__(self):
            return (FakeEntry(self.folder, f"{number:08}.jpg") for number in range(N_MANY))

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(picture_files.os, "scandir", Listed)
    tracemalloc.start()
    files = [file for file, _ in picture_files.ImageSearch().found([tmp_path])]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(files) == N_MANY
    assert peak < N_MANY * BYTES_PER_FILE


def test_a_search_gives_its_first_picture_before_it_has_seen_the_last_folder(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    looked, scandir = [], picture_files.os.scandir
    monkeypatch.setattr(picture_files.os, "scandir", lambda path: looked.append(Path(path).name) or scandir(path))
    found = picture_files.ImageSearch().found([tmp_path])
    assert next(found)[0].endswith("1.jpg")
    assert "b" not in looked


def test_memory_per_row_of_a_table_is_bounded(tmp_path):
    rows = (
        ("file", "label", "patient"),
        *((f"pictures/{n:08}.png", "xyz"[n % 3], f"P{n // 9}") for n in range(N_MANY)),
    )
    path = table(tmp_path / "t.csv", rows)
    tracemalloc.start()
    listing = read_listing(open_source(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listing.files) == N_MANY
    assert np.bincount(listing.labels).tolist() == [6667, 6667, 6666]
    assert peak < N_MANY * BYTES_PER_FILE
