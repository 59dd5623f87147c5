import struct

import numpy as np
import pytest
import torch
from PIL import Image

from msf.data import load_pictures, prepare_images, read_image

GREY = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
COLOUR = np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def levels(image):
    return image.numpy().squeeze()


def test_eight_bit_grey_and_colour_are_read_as_they_are(tmp_path):
    grey = read_image(saved(tmp_path / "g.png", Image.fromarray(GREY)))
    assert (grey.dtype, grey.shape) == (torch.uint8, (10, 12, 1))
    assert (levels(grey) == GREY).all()
    assert (levels(read_image(saved(tmp_path / "c.png", Image.fromarray(COLOUR)))) == COLOUR).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_all_sixteen_bits_of_a_grey_picture_are_kept(tmp_path, suffix):
    values = np.linspace(0, 65535, 120).astype(np.uint16).reshape(10, 12)
    image = read_image(saved(tmp_path / f"deep.{suffix}", Image.fromarray(values)))
    assert image.dtype == torch.uint16
    assert (levels(image) == values).all()
    prepared = prepare_images(image[None], 12, 1)
    assert prepared.amin() == -1
    assert prepared.amax() == 1


def test_neighbouring_sixteen_bit_levels_stay_apart(tmp_path):
    path = saved(tmp_path / "faint.png", Image.fromarray(np.array([[256, 257], [258, 259]], np.uint16)))
    assert load_pictures([path], 2, 1).images.unique().numel() == 4


def test_black_and_white_uses_the_whole_range(tmp_path):
    path = saved(tmp_path / "bits.png", Image.fromarray(GREY).convert("1"))
    assert read_image(path).unique().tolist() == [0, 255]


def test_a_palette_becomes_its_colours(tmp_path):
    image = Image.fromarray(COLOUR).quantize(16)
    path = saved(tmp_path / "palette.png", image)
    with Image.open(path) as opened:
        assert opened.mode == "P"
    assert (levels(read_image(path)) == np.array(image.convert("RGB"))).all()


def test_cmyk_becomes_rgb(tmp_path):
    path = saved(tmp_path / "print.tif", Image.fromarray(COLOUR).convert("CMYK"))
    assert np.abs(levels(read_image(path)).astype(int) - COLOUR).max() <= 2


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_pictures_keep_their_levels_and_transparent_parts_become_black(tmp_path, mode):
    pixels = GREY if mode == "LA" else COLOUR
    image = Image.fromarray(pixels).convert(mode)
    assert (levels(read_image(saved(tmp_path / "opaque.png", image))) == pixels).all()
    alpha = np.full((10, 12), 255, np.uint8)
    alpha[:, 6:] = 0
    image.putalpha(Image.fromarray(alpha))
    read = levels(read_image(saved(tmp_path / "half.png", image)))
    assert (read[:, :6] == pixels[:, :6]).all()
    assert (read[:, 6:] == 0).all()
    assert read.ndim == pixels.ndim


def test_a_transparent_entry_of_a_palette_becomes_black(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    image.putpalette([200, 10, 10, 10, 200, 10])
    path = saved(tmp_path / "p.png", image, transparency=0)
    assert levels(read_image(path)).tolist() == [[[0, 0, 0], [10, 200, 10]], [[10, 200, 10], [0, 0, 0]]]


def test_the_orientation_that_a_camera_noted_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    path = saved(tmp_path / "turned.png", Image.fromarray(GREY), exif=exif)
    assert (levels(read_image(path)) == np.rot90(GREY, -1)).all()


def test_a_picture_that_is_not_square_is_stretched_or_cropped(tmp_path):
    pixels = np.zeros((8, 16), np.uint8)
    pixels[:, 4:12] = 255
    path = saved(tmp_path / "wide.png", Image.fromarray(pixels))
    cropped = load_pictures([path], 8, 1, fit="crop").images
    assert (cropped == 1).all()
    stretched = load_pictures([path], 8, 1).images
    assert stretched.shape == (1, 1, 8, 8)
    assert (stretched[..., 3:5] == 1).all()
    assert (stretched[..., [0, 7]] == -1).all()
    tall = saved(tmp_path / "tall.png", Image.fromarray(pixels.T.copy()))
    assert torch.equal(load_pictures([tall], 8, 1, fit="crop").images, cropped)
    padded = load_pictures([path], 16, 1, fit="pad").images[0, 0]
    assert (padded[4:12, 4:12] == 1).all()
    assert (padded[[0, 3, 12, 15]] == -1).all()
    with pytest.raises(ValueError, match="fit must be one of stretch, crop, pad; got 'squash'"):
        load_pictures([path], 8, 1, fit="squash")


def test_grey_is_repeated_and_colour_becomes_luminance_as_the_network_wants(tmp_path):
    grey, colour = (
        saved(tmp_path / f"{name}.png", Image.fromarray(pixels)) for name, pixels in (("g", GREY), ("c", COLOUR))
    )
    three = load_pictures([grey, colour], 12, 3).images
    assert torch.equal(three[0, 0], three[0, 2])
    assert torch.equal(load_pictures([colour], 12, 3).images, three[1:])
    assert load_pictures([grey, colour], 12, 1).images.shape == (2, 1, 12, 12)


def broken_files(folder):
    whole = saved(folder / "whole.png", Image.fromarray(COLOUR).resize((64, 64)))
    content = whole.read_bytes()
    files = {
        "truncated.png": content[: len(content) // 2],
        "text.png": b"not a picture",
        "empty.jpg": b"",
        "damaged.png": content[:60] + bytes(40) + content[100:],
    }
    for name, broken in files.items():
        (folder / name).write_bytes(broken)
    saved(folder / "float.tif", Image.fromarray(np.ones((4, 4), np.float32)))
    saved(folder / "wide.tif", Image.fromarray(np.full((4, 4), 70000, np.int32)))
    frames = [Image.fromarray(GREY)] * 3
    saved(folder / "series.tif", frames[0], save_all=True, append_images=frames[1:])
    return whole, [folder / name for name in (*files, "float.tif", "wide.tif", "series.tif", "absent.png")]


def test_broken_files_are_named_and_do_not_cost_the_others(tmp_path):
    whole, broken = broken_files(tmp_path)
    loaded = load_pictures([whole, *broken, whole], 16, 3)
    assert loaded.rows == [0, len(broken) + 1]
    assert torch.equal(loaded.images[0], loaded.images[1])
    assert sorted(loaded.failures) == list(range(1, len(broken) + 1))
    for number, path in enumerate(broken, start=1):
        assert path.name in loaded.failures[number]
    text = " ".join(loaded.failures.values())
    assert "3 pictures in one file" in text
    assert "from 70000 to 70000" in text
    assert "floating-point values" in text


def test_where_nothing_can_be_read_there_are_no_pictures(tmp_path):
    (tmp_path / "a.png").write_text("none")
    loaded = load_pictures([tmp_path / "a.png"], 16, 3)
    assert loaded.images.shape == (0, 3, 16, 16)
    assert loaded.rows == []


@pytest.mark.parametrize(("size", "channels"), [(0, 3), (-1, 1), (8, 2)])
def test_sizes_and_channels_out_of_range_are_refused_whatever_the_files(size, channels):
    with pytest.raises(ValueError, match="size must be >= 1 and channels 1 or 3"):
        load_pictures([], size, channels)


# Sizes and depths


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_picture_beyond_the_budget_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path / "p.png", noise(40, 30))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(
        ValueError, match=r"p\.png' .*got: 40 x 30 pixels, more than max_pixels = 1199: make it smaller"
    ):
        read_image(path, max_pixels=1199)
    monkeypatch.undo()
    assert read_image(path, max_pixels=1200).shape == (30, 40, 3)
    assert load_pictures([path], 8, 3, max_pixels=1199).rows == []
    for call in (lambda: read_image(path, max_pixels=0), lambda: load_pictures([], 8, 3, max_pixels=-1)):
        with pytest.raises(ValueError, match="max_pixels must be >= 1; got"):
            call()


@pytest.mark.parametrize(
    ("limit", "shape"), [(64 * 48, (48, 64)), (64 * 48 - 1, (24, 32)), (700, (12, 16)), (50, (6, 8))]
)
def test_a_jpeg_beyond_the_budget_is_decoded_smaller(tmp_path, limit, shape):
    smooth = Image.fromarray(COLOUR).resize((64, 48), Image.Resampling.BICUBIC)
    path = saved(tmp_path / "p.jpg", smooth, quality=95)
    image = read_image(path, max_pixels=limit)
    assert image.shape == (*shape, 3)
    wanted = np.asarray(smooth.resize(shape[::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(image.numpy().astype(int) - wanted).mean() < 12


def test_a_jpeg_that_no_reduction_fits_and_a_progressive_one_are_refused(tmp_path):
    plain = saved(tmp_path / "a.jpg", noise(64, 48))
    progressive = saved(tmp_path / "b.jpg", noise(64, 48), progressive=True)
    for path, limit in ((plain, 47), (progressive, 1000)):
        with pytest.raises(ValueError, match="64 x 48 pixels, more than max_pixels"):
            read_image(path, max_pixels=limit)
    assert read_image(progressive, max_pixels=64 * 48).shape == (48, 64, 3)


def test_the_budget_is_ours_and_not_pillows(tmp_path, monkeypatch):
    path = saved(tmp_path / "p.png", noise(40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path).shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def packed_tiff(path, values, bits):
    """Write a grey TIFF of `bits` bits per value, which Pillow reads and does not write."""
    rows = [int("".join(f"{value:0{bits}b}" for value in row), 2) for row in values]
    height, width = values.shape
    data = b"".join(row.to_bytes(width * bits // 8, "big") for row in rows)
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = struct.pack("<I", 8 + len(data))
    path.write_bytes(b"II*\0" + start + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def test_a_tiff_of_twelve_bits_uses_its_own_range(tmp_path):
    values = np.array([[0, 1, 4094, 4095], [2048, 1000, 3, 4]])
    packed_tiff(tmp_path / "twelve.tif", values, 12)
    image = read_image(tmp_path / "twelve.tif")
    assert image.dtype == torch.uint16
    assert (levels(image) == np.rint(values * 65535 / 4095)).all()


def test_thirty_two_bits_are_refused_whatever_their_values(tmp_path):
    for k, value in enumerate((0, 3, 65535, 70000, -1)):
        path = saved(tmp_path / f"{k}.tif", Image.fromarray(np.full((4, 4), value, np.int32)))
        with pytest.raises(ValueError, match=f"from {value} to {value}.*whose range is unknown"):
            read_image(path)
