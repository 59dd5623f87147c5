"""From pictures to a data set: the very pixels, the splits, and a report that misses nothing."""

import csv
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from msf.data import PackSettings, Reading, load_dataset, pack_pictures
from msf.data.packing import pack_into
from msf.data.similar import near_pairs, perceptual_hash


def noise(seed, size=16, channels=3):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, channels), np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def textured(seed, size=32):
    """Return a picture with forms of every size, as photographs have them."""
    rng, total = np.random.default_rng(seed), 0.0
    for side, weight in ((5, 0.5), (11, 0.3), (size, 0.2)):
        coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
        total = total + weight * np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float64)
    return total.round().astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def folder(root, n=40, classes="ab", make=noise):
    for number in range(n):
        save(root / classes[number % len(classes)] / f"{number:03}.png", make(number))
    return root


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_picture_is_in_the_data_set_with_its_very_pixels_and_its_class(tmp_path):
    folder(tmp_path / "d")
    report = pack_pictures(tmp_path / "d", tmp_path / "out.npz")
    data = load_dataset(tmp_path / "out.npz")
    assert data.class_names == ("a", "b")
    rows = rows_of(tmp_path / "out.rows.csv")
    assert len(rows) == 40
    for row in rows:
        split = data.split(row["split"])
        assert (split.images[int(row["index"])].numpy() == noise(int(Path(row["file"]).stem))).all()
        assert int(split.labels[int(row["index"])]) == int(row["label"]) == "ab".index(row["class"])
    assert report["sha256"] == data.fingerprint
    assert report["n_in_split"] == {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
    assert json.loads((tmp_path / "out.json").read_text()) == report


def test_numpy_reads_the_file_without_us(tmp_path):
    folder(tmp_path / "d", make=lambda seed: noise(seed, channels=1))
    pack_pictures(tmp_path / "d", tmp_path / "out.npz", PackSettings(class_names=("no", "yes")))
    with np.load(tmp_path / "out.npz") as arrays:
        assert arrays["class_names"].tolist() == ["no", "yes"]
        assert arrays["train_images"].shape == (28, 16, 16)
        assert arrays["train_labels"].shape == (28, 1)


def test_the_same_pictures_and_seed_give_the_same_bytes(tmp_path):
    folder(tmp_path / "d")
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        pack_pictures(tmp_path / "d", tmp_path / f"{name}.npz", PackSettings(seed=seed))
    one, again, other = ((tmp_path / f"{name}.npz").read_bytes() for name in ("one", "again", "other"))
    assert one == again
    assert one != other


def test_patients_of_a_table_stay_together_and_columns_are_kept(tmp_path):
    rows = [("file", "label", "patient", "age")]
    for number in range(120):
        save(tmp_path / "p" / f"{number}.png", noise(number))
        rows.append((f"p/{number}.png", "xyz"[number % 3], f"P{number // 4}", str(number)))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    report = pack_pictures(tmp_path / "t.csv", tmp_path / "out.npz", PackSettings(val=0.2, test=0.2))
    assert report["n_groups"] == 30
    splits = {}
    for row in rows_of(tmp_path / "out.rows.csv"):
        splits.setdefault(row["group"], set()).add(row["split"])
        assert row["age"] == Path(row["file"]).stem
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}


def test_given_splits_are_kept_and_a_missing_one_is_cut_from_training(tmp_path):
    folder(tmp_path / "d" / "train", 40)
    folder(tmp_path / "d" / "test", 10, make=lambda seed: noise(seed + 100))
    report = pack_pictures(tmp_path / "d", tmp_path / "out.npz", PackSettings(val=0.25))
    assert report["n_in_split"] == {"train": 30, "val": 10, "test": 10}
    assert report["splits_made"] == ["train", "val"]
    of_test = {Path(row["file"]).parts[-3] for row in rows_of(tmp_path / "out.rows.csv") if row["split"] == "test"}
    assert of_test == {"test"}


def test_a_set_for_testing_only_can_be_evaluated_and_not_trained_on(tmp_path):
    folder(tmp_path / "d", 6)
    pack_pictures(tmp_path / "d", tmp_path / "out.npz", PackSettings(only_test=True, class_names=("a", "b", "c")))
    data = load_dataset(tmp_path / "out.npz", required=("test",))
    assert (len(data.train), len(data.val), len(data.test)) == (0, 0, 6)
    assert (data.n_classes, data.n_channels, data.image_size) == (3, 3, 16)
    with pytest.raises(ValueError, match="lacks train_images"):
        load_dataset(tmp_path / "out.npz")


@pytest.mark.parametrize(
    ("fit", "column"), [("stretch", [255] * 16), ("crop", [255] * 16), ("pad", [0] * 4 + [255] * 8 + [0] * 4)]
)
def test_pictures_that_are_not_square_are_fitted(tmp_path, fit, column):
    wide = np.full((8, 16, 3), 255, np.uint8)
    for number in range(20):
        save(tmp_path / "d" / "ab"[number % 2] / f"{number}.png", wide)
    pack_pictures(tmp_path / "d", tmp_path / "out.npz", PackSettings(size=16, reading=Reading(fit=fit)))
    assert load_dataset(tmp_path / "out.npz").train.images[0, :, 4, 0].tolist() == column


def test_colour_and_grey_are_mixed_only_where_that_is_said(tmp_path):
    folder(tmp_path / "d", 20)
    save(tmp_path / "d" / "b" / "grey.png", noise(99, channels=1))
    with pytest.raises(ValueError, match=r"mode must be grey or colour where .*000.png' is colour, .*grey.png' grey"):
        pack_pictures(tmp_path / "d", tmp_path / "out.npz")
    for mode, channels in (("grey", 1), ("colour", 3)):
        pack_pictures(tmp_path / "d", tmp_path / "out.npz", PackSettings(mode=mode))
        assert load_dataset(tmp_path / "out.npz").n_channels == channels


def test_sizes_are_mixed_only_where_that_is_said(tmp_path):
    folder(tmp_path / "d", 20)
    save(tmp_path / "d" / "b" / "large.png", noise(99, 24))
    with pytest.raises(ValueError, match=r"size must be given where pictures have several .*16 x 16.*24 x 24"):
        pack_pictures(tmp_path / "d", tmp_path / "out.npz")
    report = pack_pictures(tmp_path / "d", tmp_path / "out.npz", PackSettings(size=16))
    assert report["sizes"] == [{"height": 16, "width": 16, "n": 20}, {"height": 24, "width": 24, "n": 1}]
    assert report["modes"] == [{"mode": "colour", "n": 21}]


def test_broken_files_are_rows_and_with_strict_the_end(tmp_path):
    folder(tmp_path / "d", 30)
    broken = [tmp_path / "d" / "a" / f"x{number}.png" for number in range(3)]
    for path in broken:
        path.write_bytes(b"nothing")
    report = pack_pictures(tmp_path / "d", tmp_path / "out.npz")
    assert (report["n_files"], report["n_packed"], report["n_skipped"]) == (33, 30, 3)
    assert [entry["file"] for entry in report["skipped"]] == list(map(str, broken))
    reasons = {row["file"]: row["error"] for row in rows_of(tmp_path / "out.rows.csv") if row["error"]}
    assert set(reasons) == set(map(str, broken))
    assert all("cannot identify image file" in reason for reason in reasons.values())
    with pytest.raises(ValueError, match=r"x0.png"):
        pack_pictures(tmp_path / "d", tmp_path / "strict.npz", PackSettings(strict=True))
    assert not list(tmp_path.glob("strict*"))


def test_where_no_picture_can_be_read_nothing_is_written(tmp_path):
    for number in range(4):
        (tmp_path / "d" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / "ab"[number % 2] / f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="none of 4 pictures can be read; .*0.png"):
        pack_pictures(tmp_path / "d", tmp_path / "out.npz")
    assert os.listdir(tmp_path) == ["d"]


def test_doubles_conflicts_and_constant_pictures_are_told(tmp_path):
    folder(tmp_path / "d", 60)
    save(tmp_path / "d" / "a" / "same.bmp", noise(0))  # the same pixels in another file, of the same class
    save(tmp_path / "d" / "b" / "other.tif", noise(2))  # of another class
    save(tmp_path / "d" / "b" / "black.png", noise(0) * 0)
    report = pack_pictures(tmp_path / "d", tmp_path / "out.npz")
    assert report["exact_duplicates"]["n_sets"] == 2
    (conflict,) = report["label_conflicts"]["sets"]
    assert sorted((Path(entry["file"]).name, entry["class"]) for entry in conflict) == [
        ("002.png", "a"),
        ("other.tif", "b"),
    ]
    (constant,) = report["constant"]["pictures"]
    assert constant["file"].endswith("black.png")


def given_splits(root):
    for number in range(20):
        for split in ("train", "val", "test"):
            pixels = textured(number + 1000 * ("train", "val", "test").index(split))
            save(root / split / "ab"[number % 2] / f"{number:02}.png", pixels)
    return root


def test_doubles_across_splits_are_found_and_different_pictures_are_not(tmp_path):
    root = given_splits(tmp_path / "d")
    clean = pack_pictures(root, tmp_path / "clean.npz")
    assert clean["near_duplicates_across_splits"]["n_pairs"] == clean["exact_duplicates"]["n_sets"] == 0
    original = textured(4)
    save(root / "test" / "a" / "same.png", original)
    Image.fromarray(original).save(root / "val" / "a" / "jpeg.jpg", quality=85)
    brighter = np.clip(textured(6) * 1.05 + 3, 0, 255).astype(np.uint8)
    save(root / "test" / "a" / "brighter.png", brighter)
    report = pack_pictures(root, tmp_path / "planted.npz")
    assert report["exact_duplicates"]["n_sets_across_splits"] == 1
    (exact,) = report["exact_duplicates"]["across_splits"]
    assert {Path(entry["file"]).name for entry in exact} == {"04.png", "same.png"}
    near = {
        frozenset(Path(entry["file"]).name for entry in pair["pictures"])
        for pair in report["near_duplicates_across_splits"]["pairs"]
    }
    assert near == {
        frozenset(names) for names in (("04.png", "jpeg.jpg"), ("jpeg.jpg", "same.png"), ("06.png", "brighter.png"))
    }
    assert any("too good" in note for note in report["notes"])


def test_near_pairs_are_those_of_all_pairs(monkeypatch):
    from msf.data import similar

    rng = np.random.default_rng(0)
    first = rng.integers(0, 2**63, (40, 4)).astype(np.uint64)
    second = first[rng.integers(0, 40, 30)] ^ (rng.integers(0, 2**20, (30, 4)).astype(np.uint64) << np.uint64(7))
    bits = [[sum(int(a ^ b).bit_count() for a, b in zip(x, y, strict=True)) for y in second] for x in first]
    expected = [(r, c, bits[r][c]) for r in range(40) for c in range(30) if bits[r][c] <= 40]
    assert expected
    monkeypatch.setattr(similar, "_BLOCK_PAIRS", 100)
    assert list(near_pairs(first, second, 40)) == expected


def test_a_hash_of_a_grey_picture_is_that_of_its_colours():
    grey = textured(3)[..., :1]
    assert perceptual_hash(grey) == perceptual_hash(np.repeat(grey, 3, 2))


def test_a_class_missing_from_a_split_is_a_note(tmp_path):
    folder(tmp_path / "d", 40)
    save(tmp_path / "d" / "rare" / "1.png", noise(99))
    report = pack_pictures(tmp_path / "d", tmp_path / "out.npz")
    assert report["notes"] == ["split val has no picture of rare", "split test has no picture of rare"]


def test_a_class_whose_training_pictures_are_all_broken_is_refused(tmp_path):
    folder(tmp_path / "d", 30)
    (tmp_path / "d" / "c").mkdir()
    (tmp_path / "d" / "c" / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="'c' has none"):
        pack_pictures(tmp_path / "d", tmp_path / "out.npz")


def test_the_cache_packs_once_and_anew_where_something_changed(tmp_path):
    folder(tmp_path / "d", 30)
    calls = []
    settings = PackSettings(size=16)

    def packed(with_settings=settings):
        calls.clear()
        path, report = pack_into(tmp_path / "cache", tmp_path / "d", with_settings, lambda *state: calls.append(state))
        assert report["sha256"] == load_dataset(path).fingerprint
        return path

    first = packed()
    assert len(calls) == 30
    assert packed() == first
    assert calls == []
    assert packed(PackSettings(size=8)) != first
    save(tmp_path / "d" / "a" / "new.png", noise(99))
    assert packed() != first
    assert len(calls) == 31


def test_an_interruption_leaves_nothing_behind(tmp_path):
    folder(tmp_path / "d", 30)

    def stop(done, _):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_pictures(tmp_path / "d", tmp_path / "out.npz", progress=stop)
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "gray"}, "mode must be one of auto, grey, colour"),
        ({"size": 0}, "size must be in"),
        ({"val": 0.7, "test": 0.4}, "sum below 1"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PackSettings(**settings)


def test_an_output_that_is_none_is_refused(tmp_path):
    folder(tmp_path / "d", 20)
    with pytest.raises(ValueError, match="out must be the path of an .npz"):
        pack_pictures(tmp_path / "d", tmp_path / "out.zip")
    with pytest.raises(FileNotFoundError, match="the folder of"):
        pack_pictures(tmp_path / "d", tmp_path / "no" / "out.npz")


def test_the_memory_of_packing_does_not_hold_the_pictures(tmp_path):
    for number in range(24):
        save(tmp_path / "d" / "ab"[number % 2] / f"{number}.bmp", noise(number, 512))
    tracemalloc.start()
    pack_pictures(tmp_path / "d", tmp_path / "out.npz", PackSettings(size=512))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "out.npz").stat().st_size > 24 * 512 * 512 * 3
    assert peak < 12 * 512 * 512 * 3
