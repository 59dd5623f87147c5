"""Label maps: resized without new classes, mirrored with their pictures, checked where they are read."""

import numpy as np
import pytest
import torch

from msf.data import draw_flips, load_dataset
from msf.data.dataset import PHANTOM_MASKS, PHANTOMS
from msf.data.images import apply_flips
from msf.data.label_maps import flip_label_maps, resize_label_maps
from msf.data.phantoms import PHANTOM_TISSUES, make_phantom_masks, make_phantoms


@pytest.mark.parametrize("size", [28, 32, 40, 56])
def test_a_map_that_was_enlarged_comes_back_as_it_was(size):
    maps = torch.randint(0, 5, (3, 28, 28), generator=torch.Generator().manual_seed(0))
    large = resize_label_maps(maps, size, size)
    assert large.shape == (3, size, size)
    assert torch.equal(resize_label_maps(large, 28, 28), maps)


def test_a_smaller_map_has_the_classes_at_its_pixels_centres():
    maps = torch.arange(16).reshape(1, 4, 4)
    assert resize_label_maps(maps, 2, 2).tolist() == [[[5, 7], [13, 15]]]
    assert resize_label_maps(maps, 1, 4).tolist() == [[[8, 9, 10, 11]]]


@pytest.mark.parametrize(("shape", "size"), [((4, 4), 2), ((1, 0, 4), 2), ((1, 4, 4), 0)])
def test_other_shapes_are_refused(shape, size):
    with pytest.raises(ValueError, match="label maps must be"):
        resize_label_maps(torch.zeros(shape, dtype=torch.long), size, size)


def test_maps_are_mirrored_as_their_pictures():
    flips = draw_flips(16, torch.Generator().manual_seed(1))
    assert len(flips.unique(dim=0)) == 4
    maps = torch.randint(0, 9, (16, 5, 5))
    assert torch.equal(flip_label_maps(maps, flips), apply_flips(maps[:, None].float(), flips)[:, 0].long())


def test_masks_of_phantoms_belong_to_the_same_pictures():
    sizes = {"train": 40, "val": 5, "test": 5}
    pictures, masks = make_phantoms(3, sizes), make_phantom_masks(3, sizes)
    assert torch.equal(pictures["train_images"], masks["train_images"])
    labels = masks["train_labels"]
    assert labels.dtype == torch.uint8
    assert labels.shape == (40, 28, 28)
    assert labels.unique().tolist() == [0, 1, 2]
    # What is called the nucleus is as dark as one, and what is called the background as bright.
    grey = masks["train_images"].float().mean(3)
    assert grey[labels == 2].mean() < 120 < 150 < grey[labels == 1].mean() < 215 < grey[labels == 0].mean()


def test_the_data_set_of_masks_has_classes_of_pixels():
    data = load_dataset(PHANTOM_MASKS)
    assert data.is_per_pixel
    assert data.class_names == PHANTOM_TISSUES
    assert data.train.labels.shape == (3000, 28, 28)
    assert not load_dataset(PHANTOMS).is_per_pixel
    with pytest.raises(ValueError, match="must have a class per picture"):
        data.require_classes_of_pictures()


def written(tmp_path, **changed):
    arrays = {
        name: values.numpy()
        for name, values in make_phantom_masks(0, dict.fromkeys(("train", "val", "test"), 4)).items()
    }
    path = tmp_path / "masks.npz"
    np.savez(path, **{**arrays, **changed})
    return path


def test_an_archive_may_hold_masks(tmp_path):
    data = load_dataset(written(tmp_path, class_names=np.array(["a", "b", "c"])))
    assert data.is_per_pixel
    assert data.test.labels.dtype == torch.uint8
    assert data.class_names == ("a", "b", "c")
    assert load_dataset(written(tmp_path)).class_names == ("0", "1", "2")


def test_an_archive_of_one_split_has_masks_too(tmp_path):
    arrays = make_phantom_masks(0, {"test": 4})
    np.savez(tmp_path / "test.npz", **{name: values.numpy() for name, values in arrays.items()})
    data = load_dataset(tmp_path / "test.npz", required=("test",))
    assert data.is_per_pixel
    assert data.train.labels.shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"val_labels": np.zeros((4, 28, 20), np.uint8)}, "class for each of"),
        ({"val_labels": np.zeros(4, np.int64)}, "all have a class per picture, or all one per pixel"),
        ({"val_labels": np.full((4, 28, 28), 300)}, r"must be in \[0, 255\]"),
        ({"val_labels": np.full((4, 28, 28), -1)}, r"must be in \[0, 255\]"),
        ({"test_labels": np.full((4, 28, 28), 3, np.uint8), "class_names": np.array(["a", "b", "c"])}, "test_labels"),
        ({"train_labels": np.zeros((4, 28, 28), np.uint8)}, "without gaps"),
        ({"val_labels": np.zeros((4, 28, 28, 1), np.uint8)}, "one per pixel; got"),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path, changed, words):
    with pytest.raises(ValueError, match=words):
        load_dataset(written(tmp_path, **changed))
