"""Kinds of picture files and the values that a reader must find in them: made on the spot, one entry each."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

GREY = np.array([[0, 64, 128], [255, 200, 10]], np.uint8)
DEEP = GREY.astype(np.uint16) * 257
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
EXIF_ORIENTATION = 274
KINDS, REFUSED = {}, {}


@dataclass(frozen=True)
class Kind:
    """How a file is made, and what is read: values, with what they may differ by, or words of the refusal."""

    make: object
    expected: object
    tolerance: int = 0
    options: dict = None


def kind(name, make, expected, tolerance=0, **options):
    KINDS[name] = Kind(make, np.asarray(expected), tolerance, options)


def refused(name, make, words, **options):
    REFUSED[name] = Kind(make, words, 0, options)


def image(pixels, mode=None):
    return Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)


def saved(made, suffix, **options):
    return lambda path: made().save(path.with_suffix(suffix), **options) or path.with_suffix(suffix)


# Grey and colour, by format. Lossy ones keep a flat picture.
FLAT = np.full((8, 8), 77, np.uint8)
FLAT_RGB = np.stack([FLAT, FLAT + 60, FLAT - 50], -1)
for suffix in (".png", ".bmp", ".tif", ".webp", ".gif", ".pgm", ".tga", ".jp2"):
    lossless = {"lossless": True} if suffix == ".webp" else {}
    # WebP has no grey and GIF only palettes: they are read as what they hold.
    expected = np.repeat(GREY[..., None], 3, 2) if suffix in (".webp", ".gif") else GREY[..., None]
    kind(f"grey {suffix}", saved(lambda: image(GREY), suffix, **lossless), expected)
for suffix in (".png", ".bmp", ".tif", ".webp", ".ppm", ".tga", ".jp2"):
    lossless = {"lossless": True} if suffix == ".webp" else {}
    kind(f"colour {suffix}", saved(lambda: image(RGB), suffix, **lossless), RGB)
kind("grey .jpg", saved(lambda: image(FLAT), ".jpg"), FLAT[..., None], 1)
kind("colour .jpg", saved(lambda: image(FLAT_RGB), ".jpg"), FLAT_RGB, 2)
kind("progressive .jpg", saved(lambda: image(FLAT), ".jpg", progressive=True), FLAT[..., None], 1)
for compression in ("tiff_lzw", "tiff_deflate", "packbits"):
    kind(f"tiff {compression}", saved(lambda: image(RGB), ".tif", compression=compression), RGB)

# Depths.
BITS = (GREY > 100).astype(np.uint8) * 255
kind("1 bit .png", saved(lambda: image(BITS, "1"), ".png"), BITS[..., None])
kind("1 bit .tif", saved(lambda: image(BITS, "1"), ".tif", compression="group4"), BITS[..., None])
kind("16 bits .png", saved(lambda: image(DEEP), ".png"), DEEP[..., None])
kind("16 bits .tif", saved(lambda: image(DEEP), ".tif"), DEEP[..., None])
kind("16 bits, big-endian .tif", saved(lambda: image(DEEP.astype(">u2")), ".tif"), DEEP[..., None])
kind("16 bits .pgm", saved(lambda: image(DEEP.astype(np.int32), "I"), ".pgm"), DEEP[..., None])

# A window of levels: 64 to 192 of 8 bits in 16, both ends levels.
STEPS = np.array([[0, 1000, 1999], [2000, 3000, 65535]], np.uint16)
kind(
    "16 bits, window",
    saved(lambda: image(STEPS), ".png"),
    [[[0], [0], [65535 * 999 / 1999]], [[65535 * 1000 / 1999], [65535], [65535]]],
    1,
    window=(2000.0, 2000.0),
)
kind(
    "16 bits, own range",
    saved(lambda: image(STEPS // 2), ".png"),
    np.rint((STEPS // 2)[..., None] * (65535 / 32767)),
    1,
    window="auto",
)
kind("16 bits, whole range", saved(lambda: image(STEPS), ".png"), STEPS[..., None], window="none")
kind("8 bits, window is none of theirs", saved(lambda: image(GREY), ".png"), GREY[..., None], window=(10.0, 5.0))

# Colour spaces and transparency.
kind("palette .png", saved(lambda: image(RGB).quantize(8), ".png"), RGB, 1)
kind("palette .bmp", saved(lambda: image(RGB).quantize(8), ".bmp"), RGB, 1)
kind("CMYK .tif", saved(lambda: image(RGB, "CMYK"), ".tif"), RGB, 1)
kind("YCbCr .tif", saved(lambda: image(FLAT_RGB, "YCbCr"), ".tif"), FLAT_RGB, 2)
CLEAR = np.dstack([RGB, np.array([[0, 255, 255], [255, 0, 255]], np.uint8)])
kind("transparent .png", saved(lambda: image(CLEAR), ".png"), RGB * (CLEAR[..., 3:] > 0))
kind("transparent .webp", saved(lambda: image(CLEAR), ".webp", lossless=True), RGB * (CLEAR[..., 3:] > 0))
GREY_CLEAR = np.dstack([GREY, CLEAR[..., 3]])
kind("transparent grey .png", saved(lambda: image(GREY_CLEAR), ".png"), (GREY * (CLEAR[..., 3] > 0))[..., None])


# The eight orientations that a camera notes, each undone as the EXIF standard says.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def turned(orientation, suffix):
    def make(path):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        image(RGB).save(path.with_suffix(suffix), exif=exif)
        return path.with_suffix(suffix)

    return make


for orientation, undo in UPRIGHT.items():
    kind(f"orientation {orientation} .png", turned(orientation, ".png"), undo(RGB))
kind("orientation 6 .tif", turned(6, ".tif"), UPRIGHT[6](RGB))

# Several pictures in one file.
PAGES = [GREY, 255 - GREY, GREY[:, ::-1]]
series = saved(lambda: image(PAGES[0]), ".tif", save_all=True, append_images=[image(page) for page in PAGES[1:]])
kind("third page of a .tif", series, PAGES[2][..., None], frame=3)
kind("only page of a .png", saved(lambda: image(GREY), ".png"), GREY[..., None], frame=1)
refused("page of a .tif that there is not", series, "3 picture(s) in the file, and --frame asks for number 4", frame=4)
refused("several pages", series, "3 pictures in one file: choose one with --frame, from 1 to 3")
MOVING = [np.full((4, 4), level, np.uint8) for level in (10, 200)]
animation = saved(lambda: image(MOVING[0]), ".gif", save_all=True, append_images=[image(MOVING[1])])
kind("second picture of a .gif", animation, np.full((4, 4, 3), 200), frame=2)
refused("animation", animation, "2 pictures in one file")


# Broken ones.
def content(data, suffix):
    def make(path):
        path.with_suffix(suffix).write_bytes(data(path) if callable(data) else data)
        return path.with_suffix(suffix)

    return make


def whole(path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(path.with_suffix(".whole.png"))
    return path.with_suffix(".whole.png").read_bytes()


def chunk(tag, data):
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def huge_png(_):
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", b"x")
    )


refused("empty file", content(b"", ".png"), "must be an intact picture")
refused("text", content(b"a picture", ".png"), "cannot identify image file")
refused("half a file", content(lambda path: whole(path)[:1500], ".png"), "must be an intact picture")
refused("wrong checksum", content(lambda p: whole(p)[:500] + b"\0" * 40 + whole(p)[540:], ".png"), "must be an intact")
refused("header of a giant", content(huge_png, ".png"), "more than max_pixels = 67108864")
refused("floating point", saved(lambda: image(GREY.astype(np.float32)), ".tif"), "floating-point values")
refused("32 bits", saved(lambda: image(GREY.astype(np.int32) * 70000), ".tif"), "whose range is unknown")
refused("icon", saved(lambda: image(RGB), ".ico"), "EPS files and icons are not read")
refused("drawing", content(b"%!PS-Adobe-3.0 EPSF-3.0", ".eps"), "EPS files and icons are not read")
refused("volume", content(b"\x5c\x01\0\0", ".nii"), "made by: python -c 'import nibabel")
refused("packed volume", content(b"\x1f\x8b", ".nii.gz"), "made by: python -c 'import nibabel")
refused("no file", lambda path: path.with_suffix(".png"), "no such file")
