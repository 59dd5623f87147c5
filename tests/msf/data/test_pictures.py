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
    with pytest.raises(ValueError, match="fit must be one of stretch, crop; got 'pad'"):
        load_pictures([path], 8, 1, fit="pad")


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
