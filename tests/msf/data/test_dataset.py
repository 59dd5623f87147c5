import contextlib
import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch

from msf.data import MEDMNIST, ImageDataset, known_datasets, load_dataset
from msf.data.table import NOT_TAKEN


def test_an_archive_becomes_one_uint8_tensor_and_int64_labels_per_split(archive):
    path = archive()
    dataset = load_dataset(path)
    with np.load(path) as stored:
        for name, n in (("train", 12), ("val", 4), ("test", 6)):
            split = dataset.split(name)
            assert split is getattr(dataset, name)
            assert len(split) == n
            assert split.images.dtype == torch.uint8
            assert split.labels.dtype == torch.int64
            assert np.array_equal(split.images.numpy(), stored[f"{name}_images"])
            assert np.array_equal(split.labels.numpy(), stored[f"{name}_labels"][:, 0])
    assert (dataset.n_classes, dataset.n_channels, dataset.image_size) == (3, 3, 8)
    assert (dataset.name, dataset.class_names) == ("own", ("0", "1", "2"))
    assert not dataset.flips
    assert not dataset.is_ordinal


def test_grey_pictures_get_a_channel_axis_and_flat_labels_are_taken(archive):
    dataset = load_dataset(archive(channels=1, train_labels=np.arange(12) % 3))
    assert dataset.train.images.shape == (12, 8, 8, 1)
    assert dataset.train.labels.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize("how", ["data_root", "MSF_DATA", "home"])
def test_a_name_is_found_in_the_given_folder_the_environment_and_the_cache(archive, tmp_path, monkeypatch, how):
    archive("own")
    if how == "MSF_DATA":
        monkeypatch.setenv("MSF_DATA", str(tmp_path))
    elif how == "home":
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / ".medmnist").mkdir()
        (tmp_path / "own.npz").rename(tmp_path / ".medmnist" / "own.npz")
    assert load_dataset("own", tmp_path if how == "data_root" else None).name == "own"


def test_the_given_folder_comes_before_the_environment(archive, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    archive("own", n_classes=2).rename(other / "own.npz")
    archive("own", n_classes=3)
    monkeypatch.setenv("MSF_DATA", str(tmp_path))
    assert load_dataset("own", other).n_classes == 2
    assert load_dataset("own").n_classes == 3


def test_the_table_describes_a_known_name_at_every_size(archive, tmp_path):
    archive("retinamnist", n_classes=5)
    archive("retinamnist_64", n_classes=5)
    for dataset in (load_dataset("retinamnist", tmp_path), load_dataset("retinamnist", tmp_path, size=64)):
        assert dataset.class_names == MEDMNIST["retinamnist"].class_names
        assert dataset.flips
        assert dataset.is_ordinal
        assert dataset.licence == "CC BY 4.0"
    assert dataset.name == "retinamnist_64"
    assert load_dataset(tmp_path / "retinamnist.npz").is_ordinal


@pytest.mark.parametrize("size", [28, 64, 128, 224])
@pytest.mark.parametrize("name", MEDMNIST)
def test_every_data_set_of_two_dimensions_is_known_at_every_size(archive, tmp_path, name, size):
    info = MEDMNIST[name]
    file = name if size == 28 else f"{name}_{size}"
    archive(file, n_classes=len(info.class_names), channels=info.channels)
    for dataset in (load_dataset(file, tmp_path), load_dataset(name, tmp_path, size=None if size == 28 else size)):
        assert (dataset.name, dataset.class_names) == (file, info.class_names)


def test_no_data_set_of_the_package_is_left_out():
    medmnist = pytest.importorskip("medmnist")
    assert set(medmnist.INFO) == {*MEDMNIST, *NOT_TAKEN}
    for name, info in MEDMNIST.items():
        assert len(medmnist.INFO[name]["label"]) == len(info.class_names)
        assert medmnist.INFO[name]["n_channels"] == info.channels


def test_flips_are_those_of_the_published_recipes():
    flips = {name: MEDMNIST[name].flips for name in ("bloodmnist", "dermamnist", "retinamnist", "pneumoniamnist")}
    assert flips == {"bloodmnist": True, "dermamnist": True, "retinamnist": True, "pneumoniamnist": False}


def test_the_fingerprint_is_the_sha256_of_the_file(archive):
    path = archive()
    assert load_dataset(path).fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()


def test_phantoms_need_no_file_and_are_the_same_every_time():
    first, second = load_dataset("phantoms"), load_dataset("phantoms")
    assert first.fingerprint == second.fingerprint
    assert torch.equal(first.test.images, second.test.images)
    assert (len(first.train), len(first.val), len(first.test)) == (3000, 400, 400)
    assert first.n_classes == len(first.class_names) == 5
    assert first.train.labels.dtype == torch.int64
    assert first.flips


def bytes_of(*shape):
    return np.zeros(shape, np.uint8)


EMPTY_VAL = {"val_images": bytes_of(0, 8, 8, 3), "val_labels": bytes_of(0, 1)}
ONE_CLASS = {"train_labels": bytes_of(12, 1), "val_labels": bytes_of(4, 1), "test_labels": bytes_of(6, 1)}
OBJECTS = np.array([[{}]] * 12, dtype=object)


@pytest.mark.parametrize(
    ("replaced", "error", "text"),
    [
        ({"val_labels": None}, ValueError, "lacks val_labels: .*have the arrays train_images, .*found test_images"),
        ({"train_images": np.zeros((12, 8, 8, 3), np.int16)}, TypeError, "train_images .*uint8.*got int16 with values"),
        ({"val_images": np.zeros((4, 8, 8, 3), np.float32)}, TypeError, "val_images .*must be uint8.*got float32"),
        ({"test_images": np.full((6, 8, 8, 3), np.nan)}, ValueError, "test_images .*must be finite; got NaN"),
        ({"train_images": bytes_of(12, 8, 9, 3)}, ValueError, r"H = W; got \[12, 8, 9, 3\]"),
        ({"train_images": bytes_of(12, 8, 8, 4)}, ValueError, r"got \[12, 8, 8, 4\]"),
        ({"train_images": bytes_of(12, 64)}, ValueError, r"got \[12, 64\]"),
        ({"train_images": bytes_of(12, 6, 6, 3)}, ValueError, "one picture shape"),
        ({"train_images": bytes_of(11, 8, 8, 3)}, ValueError, "equally many; got 11 and 12"),
        (EMPTY_VAL, ValueError, "val_images .*must hold at least one picture; it is empty"),
        ({"train_labels": bytes_of(12, 14)}, ValueError, r"one class per picture, .*got \[12, 14\]"),
        ({"train_labels": np.zeros((12, 1), np.float32)}, TypeError, "whole numbers; got float32"),
        ({"train_labels": np.array([["disc"]] * 12)}, TypeError, "train_labels .*whole numbers; got <U4"),
        ({"train_labels": -np.ones((12, 1), np.int8)}, ValueError, r"train_labels .*in \[0, 3\); got values from -1"),
        ({"train_labels": bytes_of(12, 1) + 1}, ValueError, r"without training pictures: \[0, 2\]"),
        (ONE_CLASS, ValueError, "got 1 class"),
        ({"train_labels": OBJECTS}, ValueError, "cannot be read as an .npz archive of plain arrays"),
    ],
)
def test_what_is_wrong_with_an_archive_is_named(archive, replaced, error, text):
    with pytest.raises(error, match=text):
        load_dataset(archive(**replaced))


def test_labels_outside_the_classes_of_a_known_name_are_refused(archive):
    with pytest.raises(
        ValueError, match=r"train_labels of .*pneumoniamnist\.npz' must be in \[0, 2\); got values from 0 to 2"
    ):
        load_dataset(archive("pneumoniamnist", channels=1, n_classes=3))


def test_channels_other_than_those_of_a_known_name_are_refused(archive):
    with pytest.raises(ValueError, match=r"must have 1 image channel\(s\) as pneumoniamnist has; got 3"):
        load_dataset(archive("pneumoniamnist", channels=3, n_classes=2))


def broken_files():
    good = io.BytesIO()
    np.savez(good, train_images=np.zeros(5000, np.uint8))
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    flipped = bytearray(good.getvalue())
    flipped[len(flipped) // 2] ^= 0xFF
    foreign = io.BytesIO()  # with the right name inside
    with zipfile.ZipFile(foreign, "w") as file:
        file.writestr("train_images.npy", "no array")
    return {
        "empty": b"",
        "text": b"hello",
        "cut off": good.getvalue()[:3000],
        "one bit wrong": bytes(flipped),
        "a single array": array.getvalue(),
        "a zip of other files": foreign.getvalue(),
    }


@pytest.mark.parametrize("content", broken_files().values(), ids=broken_files())
def test_a_corrupt_file_is_a_value_error_that_names_it(tmp_path, content):
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.npz' cannot be read as an \.npz archive"):
        load_dataset(path)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_is_either_harmless_or_a_value_error(archive, seed):
    path = archive()
    rng = np.random.default_rng(seed)
    content = bytearray(path.read_bytes())
    if seed % 4 == 0:
        content = content[: rng.integers(len(content))]
    else:
        content[rng.integers(len(content))] = rng.integers(256)
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        assert load_dataset(path).n_classes == 3


def test_a_missing_file_is_a_value_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match="must be an existing .npz file; there is none at .*absent.npz"):
        load_dataset(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="is a folder: .msf pack. makes a data set of its pictures"):
        load_dataset(str(tmp_path))


def test_an_unknown_name_lists_the_known_ones_and_what_lies_in_the_folders(archive, tmp_path):
    archive("mine")
    with pytest.raises(ValueError, match=r"phantom-masks, bloodmnist, .*got .bloodmnits.; archives at hand: mine"):
        load_dataset("bloodmnits", tmp_path)
    assert known_datasets()[0] == "phantoms"


def test_unknown_sizes_and_splits_are_refused(archive):
    with pytest.raises(ValueError, match="size of bloodmnist must be one of 28, 64, 128, 224; got 32"):
        load_dataset("bloodmnist", size=32)
    for name in ("phantoms", "bloodmnist_64", "some/path.npz"):
        with pytest.raises(ValueError, match="size goes with a plain name"):
            load_dataset(name, size=64)
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'validation'"):
        load_dataset(archive()).split("validation")


@pytest.mark.parametrize(
    ("name", "sizes", "n_classes", "channels"),
    [
        ("pneumoniamnist", (4708, 524, 624), 2, 1),
        ("retinamnist", (1080, 120, 400), 5, 3),
        ("blood_pbc_28", (11959, 1712, 3421), 8, 3),
        ("blood_pbc_224", (192, 40, 80), 8, 3),
    ],
)
def test_real_archives_load(data_folder, name, sizes, n_classes, channels):
    if not (data_folder / f"{name}.npz").is_file():
        pytest.skip(f"MSF_DATA holds no {name}.npz")
    dataset = load_dataset(name, data_folder)
    assert isinstance(dataset, ImageDataset)
    assert tuple(len(dataset.split(split)) for split in ("train", "val", "test")) == sizes
    assert (dataset.n_classes, dataset.n_channels) == (n_classes, channels)
