"""Masks on their way into a data set: their very values, with their own pictures, or told what is wrong."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from msf.data import PackSettings, Reading, load_dataset, pack_pictures
from msf.data.masks import MaskFolder

N = 20
SIZE = 12


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def mask(number, n_classes=3):
    values = np.random.default_rng(1000 + number).integers(0, n_classes, (SIZE, SIZE), np.uint8)
    values.flat[:n_classes] = np.arange(n_classes)
    return values


def save(path, values, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if mode == "P":
        image = Image.frombytes("P", (values.shape[1], values.shape[0]), values.tobytes())
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 200, 30] + [9] * 759)
    image.save(path)
    return path


@pytest.fixture
def place(tmp_path):
    for number in range(N):
        save(tmp_path / "pictures" / f"{number:02}.png", picture(number))
        save(tmp_path / "masks" / f"{number:02}.png", mask(number))
    return tmp_path


def pack(place, **fields):
    report = pack_pictures(place / "pictures", place / "out.npz", PackSettings(masks=str(place / "masks"), **fields))
    return report, load_dataset(place / "out.npz")


def check(place, data, expected=mask):
    with (place / "out.rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        number = int(row["file"][-6:-4])
        split = data.split(row["split"])
        assert (split.images[int(row["index"])].numpy() == picture(number)).all()
        assert (split.labels[int(row["index"])].numpy() == expected(number)).all()
        assert row["mask"].endswith(f"{number:02}.png")
    return rows


def test_every_mask_goes_with_its_picture_with_its_very_values(place):
    report, data = pack(place)
    assert data.is_per_pixel
    assert data.class_names == ("0", "1", "2")
    assert len(check(place, data)) == N
    assert report["n_packed"] == N
    assert sum(report["n_in_split"].values()) == N
    assert report["counts"][2] == {"class": "2", **report["n_in_split"]}
    json.dumps(report)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "I;16"])
def test_palettes_and_depths_keep_the_numbers(place, mode):
    for number in range(N):
        values = mask(number)
        if mode == "RGB":
            values = np.repeat(values[..., None], 3, 2)
        save(place / "masks" / f"{number:02}.png", values.astype(np.uint16) if mode == "I;16" else values, mode)
    _, data = pack(place)
    check(place, data)


def test_masks_of_black_and_white_have_two_classes(place):
    for number in range(N):
        save(place / "masks" / f"{number:02}.png", mask(number, 2) * 255)
    _, data = pack(place)
    assert data.class_names == ("0", "1")
    check(place, data, lambda number: mask(number, 2))
    _, data = pack(place, class_names=("outside", "inside"))
    assert data.class_names == ("outside", "inside")
    check(place, data, lambda number: mask(number, 2))


def test_masks_are_fitted_like_their_pictures(place):
    for number in range(N):
        wide = np.zeros((SIZE, 2 * SIZE), np.uint8)
        wide[:, SIZE // 2 : SIZE // 2 + SIZE] = 1
        wide[0, 0] = 2
        save(place / "pictures" / f"{number:02}.png", np.repeat(wide[..., None] * 100, 3, 2) + number)
        save(place / "masks" / f"{number:02}.png", wide)
    report, data = pack(place, reading=Reading(fit="pad"), size=2 * SIZE)
    assert data.train.labels.shape[1:] == (2 * SIZE, 2 * SIZE)
    assert (data.train.labels[:, : SIZE // 2] == 0).all()
    middle = data.train.labels[:, SIZE // 2 + 1 : SIZE // 2 + SIZE]
    assert (middle == (data.train.images[:, SIZE // 2 + 1 : SIZE // 2 + SIZE, :, 0] > 60)).all()
    assert report["n_packed"] == N


def test_a_table_names_masks(place):
    rows = [f"pictures/{n:02}.png,masks/{n:02}.png,{'test' if n < 5 else 'train'}" for n in range(N)]
    table = place / "t.csv"
    table.write_text("\n".join(["file,mask,split", *rows]))
    pack_pictures(table, place / "out.npz")
    data = load_dataset(place / "out.npz", required=("train", "test"))
    assert len(data.test) == 5
    check(place, data)


def test_a_table_with_labels_has_no_masks_unless_they_are_named(place):
    rows = [f"pictures/{n:02}.png,masks/{n:02}.png,{n % 2}" for n in range(N)]
    table = place / "t.csv"
    table.write_text("\n".join(["file,mask,label", *rows]))
    pack_pictures(table, place / "out.npz")
    assert not load_dataset(place / "out.npz").is_per_pixel
    pack_pictures(table, place / "out.npz", PackSettings(columns={"mask": "mask"}))
    assert load_dataset(place / "out.npz").is_per_pixel
    with pytest.raises(ValueError, match="labels or masks"):
        pack_pictures(table, place / "out.npz", PackSettings(columns={"mask": "mask", "label": "label"}))


def test_folders_of_splits_are_kept(place):
    for number in range(N):
        split = ("train", "val", "test")[number % 3]
        for kind in ("pictures", "masks"):
            file = place / kind / f"{number:02}.png"
            file.parent.joinpath(split).mkdir(exist_ok=True)
            file.rename(file.parent / split / file.name)
    report, data = pack(place)
    assert report["splits_made"] == ["train"]
    assert len(data.test) == N // 3
    check(place, data)


def broken(place, number, values=None, content=None):
    file = place / "masks" / f"{number:02}.png"
    file.unlink()
    if values is not None:
        save(file, values)
    elif content is not None:
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("values", "content", "words"),
    [
        (np.zeros((SIZE, SIZE + 1), np.uint8), None, "must have the size of its picture, 12 x 12 pixels; got 13 x 12"),
        (np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3), None, "colours without a palette"),
        (np.full((SIZE, SIZE), 300, np.uint16), None, "classes are in [0, 255]"),
        (np.full((SIZE, SIZE), 7, np.uint8), None, "numbers of the classes; got 7"),
        (np.full((SIZE, SIZE), 255, np.uint8), None, "numbers of the classes; got 255"),
        (None, b"no mask", "must be an intact mask"),
        (None, None, "has no mask in"),
    ],
)
def test_a_mask_that_does_not_fit_costs_its_own_picture_only(place, values, content, words):
    broken(place, 3, values, content)
    report, data = pack(place, class_names=("a", "b", "c"))
    assert report["n_packed"] == N - 1
    assert words in report["skipped"][0]["reason"]
    assert "03.png" in report["skipped"][0]["reason"]
    with pytest.raises(ValueError, match=r"03\.png"):
        pack(place, class_names=("a", "b", "c"), strict=True)


def test_a_jpeg_is_no_mask(place):
    broken(place, 3)
    Image.fromarray(mask(3)).save(place / "masks" / "03.jpg")
    report, _ = pack(place)
    assert "which changes values" in report["skipped"][0]["reason"]


@pytest.mark.parametrize("value", [5, 255])
def test_values_without_names_must_count_from_zero(place, value):
    values = mask(4)
    values[0, 0] = value
    broken(place, 4, values)
    with pytest.raises(ValueError, match=rf"got 0, 1, 2, {value}, the largest first in .*04\.png"):
        pack(place)


def test_masks_without_pictures_and_twice_are_told(place):
    save(place / "masks" / "02.bmp", mask(2))
    report, _ = pack(place)
    assert "has several masks" in report["skipped"][0]["reason"]
    found = MaskFolder(place / "masks")
    assert found.of(str(place / "pictures" / "77.png"), place / "pictures")[0] is None


@pytest.mark.parametrize(
    ("pictures", "masks", "error", "words"),
    [
        ("pictures", "none", FileNotFoundError, "masks must be a folder"),
        ("pictures", "pictures", ValueError, "beside the pictures"),
        (".", "masks", ValueError, "beside the pictures"),
        ("masks/00.png", "masks", ValueError, "of a folder of pictures"),
    ],
)
def test_folders_that_cannot_be_are_refused(place, pictures, masks, error, words):
    with pytest.raises(error, match=words):
        pack_pictures(place / pictures, place / "out.npz", PackSettings(masks=str(place / masks)))


def test_equal_pictures_with_other_masks_are_a_conflict(place):
    for number in range(6):
        save(place / "pictures" / f"{number:02}.png", picture(0))
    broken(place, 1, mask(0))
    report, _ = pack(place)
    assert report["label_conflicts"]["n_sets"] == 1
