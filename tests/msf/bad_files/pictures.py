"""Pictures that no reader must take."""

import os
import struct
import zlib

import numpy as np
from PIL import Image

from tests.msf.bad_files.case import add
from tests.msf.bad_files.sound import sound


def picture(save, name="picture.png"):
    def make(folder):
        save(folder / name)
        return folder / name

    return make


def picture_bytes(change, name="picture.png"):
    def make(folder):
        content = sound("picture", folder).read_bytes()
        (folder / name).write_bytes(change(content))
        return folder / name

    return make


def png_claiming(width, height):
    """Return a tiny PNG whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def tiff_of(values):
    return picture(lambda path: Image.fromarray(values).save(path), "picture.tif")


def signed_tiff(path):
    """Write a TIFF of 16-bit numbers with a sign, which Pillow reads and does not write."""
    Image.fromarray(np.full((4, 4), 3, np.uint16)).save(path)
    content = bytearray(path.read_bytes())
    n_tags, first = struct.unpack("<H", content[8:10])[0], 10
    entries = [content[first + 12 * k : first + 12 * k + 12] for k in range(n_tags)]
    entries.append(struct.pack("<HHIHH", 339, 3, 1, 2, 0))
    entries.sort(key=lambda entry: struct.unpack("<H", entry[:2])[0])
    strip = struct.pack("<16h", *range(-8, 8))
    start = 8 + 2 + 12 * len(entries) + 4
    for k, entry in enumerate(entries):
        if struct.unpack("<H", entry[:2])[0] == 273:  # where the pixels are
            entries[k] = entry[:8] + struct.pack("<I", start)
    body = b"".join(bytes(entry) for entry in entries)
    path.write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + strip)


def series(path):
    frames = [Image.new("L", (4, 4), k) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def icon_of(png):
    """Return an icon that claims 32 x 32 pixels and holds a PNG."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(png), 22) + png


def pipe(folder):
    os.mkfifo(folder / "picture.png")
    return folder / "picture.png"


PICTURE = "must be an intact picture; got: "
LARGE = PICTURE + "{} x {} pixels, more than max_pixels"
for title, wanted, make in [
    ("nothing", PICTURE, picture_bytes(lambda data: b"")),
    ("text", PICTURE, picture_bytes(lambda data: b"hello")),
    ("half a file", PICTURE, picture_bytes(lambda data: data[: len(data) // 2])),
    ("a damaged header", PICTURE, picture_bytes(lambda data: data[:20] + bytes(10) + data[30:])),
    ("12000 x 12000 pixels", LARGE.format(12000, 12000), picture_bytes(lambda data: png_claiming(12000, 12000))),
    (
        "2^31 - 1 pixels a side",
        LARGE.format(2147483647, 2147483647),
        picture_bytes(lambda data: png_claiming(2**31 - 1, 2**31 - 1)),
    ),
    ("no pixels", PICTURE, picture_bytes(lambda data: png_claiming(0, 0))),
    ("fewer pixels than claimed", PICTURE, picture_bytes(lambda data: png_claiming(500, 500))),
    (
        "32-bit whole numbers within 16 bits",
        "whole numbers .*whose range is unknown",
        tiff_of(np.full((4, 4), 9, np.int32)),
    ),
    ("32-bit whole numbers", "from 70000 to 70000.*whose range is unknown", tiff_of(np.full((4, 4), 70000, np.int32))),
    ("16-bit numbers with a sign", "with a sign .*whose range is unknown", picture(signed_tiff, "picture.tif")),
    ("floating-point numbers", "floating-point values, whose range", tiff_of(np.ones((4, 4), np.float32))),
    ("numbers that are NaN", "floating-point values, whose range", tiff_of(np.full((4, 4), np.nan, np.float32))),
    ("a series", "3 pictures in one file", picture(series, "picture.tif")),
    ("an animation", "3 pictures in one file", picture(series, "picture.gif")),
    ("a DICOM file", "DICOM file", picture_bytes(lambda data: bytes(128) + b"DICM", "picture.dcm")),
    ("a NIfTI file", "NIfTI, a volume, which is not read", picture_bytes(lambda data: bytes(400), "picture.nii.gz")),
    ("EPS", "EPS files and icons are not read", picture(lambda path: Image.new("L", (4, 4)).save(path), "picture.eps")),
    (
        "an icon that hides a larger picture",
        "EPS files and icons are not read",
        picture_bytes(lambda data: icon_of(png_claiming(12000, 12000)), "picture.ico"),
    ),
    ("a pipe", "no file", pipe),
    ("a folder", PICTURE, lambda folder: folder),
    ("a file that is missing", PICTURE, lambda folder: folder / "none.png"),
]:
    add("picture", title, wanted, make)
