"""The download path, with a stand-in for the `medmnist` package and files instead of the network."""

import hashlib
import sys
import types

import pytest

from msf.data import load_dataset


@pytest.fixture
def medmnist(monkeypatch, archive, tmp_path):
    """Publish an archive as `pneumoniamnist` (28) and `pneumoniamnist_64`; return the changeable metadata."""
    path = archive("published", n_classes=2, channels=1)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    row = {"url": path.as_uri(), "MD5": md5, "url_64": path.as_uri(), "MD5_64": md5}
    module = types.ModuleType("medmnist")
    module.INFO = {"pneumoniamnist": row}
    monkeypatch.setitem(sys.modules, "medmnist", module)
    return row


@pytest.mark.parametrize("name", ["pneumoniamnist", "pneumoniamnist_64"])
def test_a_name_that_is_not_at_hand_is_downloaded_once(medmnist, tmp_path, name):
    root = tmp_path / "new" / "root"
    dataset = load_dataset(name, root)
    assert dataset.name == name
    assert dataset.class_names == ("normal", "pneumonia")
    assert [path.name for path in root.iterdir()] == [f"{name}.npz"]
    medmnist["url"] = medmnist["url_64"] = "file:///nowhere"
    assert load_dataset(name, root).fingerprint == dataset.fingerprint


def test_without_a_folder_the_cache_of_medmnist_is_used(medmnist, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_dataset("pneumoniamnist")
    assert (tmp_path / "home" / ".medmnist" / "pneumoniamnist.npz").is_file()


def test_a_wrong_checksum_is_refused_and_nothing_stays(medmnist, tmp_path):
    medmnist["MD5"] = "0" * 32
    root = tmp_path / "root"
    with pytest.raises(ValueError, match="must have md5 0{32}; got [0-9a-f]{32}: nothing was kept"):
        load_dataset("pneumoniamnist", root)
    assert list(root.iterdir()) == []


def test_no_network_is_said_with_what_to_do_and_nothing_stays(medmnist, tmp_path):
    medmnist["url"] = (tmp_path / "unreachable.npz").as_uri()
    root = tmp_path / "root"
    with pytest.raises(
        ValueError, match=r"could not be downloaded from file:.*put the file at .*root/pneumoniamnist\.npz"
    ):
        load_dataset("pneumoniamnist", root)
    assert list(root.iterdir()) == []


def test_an_archive_that_the_installed_package_does_not_know_is_named(medmnist, tmp_path):
    with pytest.raises(ValueError, match=r"knows no address of 'pneumoniamnist_224': pip install --upgrade medmnist"):
        load_dataset("pneumoniamnist_224", tmp_path)


def test_without_the_package_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(
        ValueError, match=r"needs the package medmnist: pip install 'medsymmflow\[data\]', or put the file"
    ):
        load_dataset("bloodmnist_224", tmp_path)
