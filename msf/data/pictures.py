"""Picture files of any size and mode, as a person has them, on their way to the network."""

from __future__ import annotations

import math
import shlex
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from msf.config import FitName
from msf.data.dicom import is_dicom, read_dicom
from msf.data.images import prepare_images
from msf.data.window import Window, apply_window, spread
from msf.files.damage import first_line
from msf_kernels.shapes import ImageBatch

MAX_PIXELS = 2**26
"""Pixels of the largest picture that is decoded unless told otherwise: 67 million, a square of 8192."""

_GREY_MODES = ("1", "L")
_JPEG_REDUCTIONS = (2, 4, 8)
# EPS runs another program to be drawn; icons are decoded when they are opened, at another size than they claim.
_REFUSED_FORMATS = {"EPS": (".eps", ".ps"), "ICNS": (".icns",), "ICO": (".ico",)}
# Formats whose 32-bit whole numbers are 16 bits by definition; in a TIFF they have any range.
_SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")
_BITS_TAG, _FORMAT_TAG = 258, 339  # BitsPerSample and SampleFormat of TIFF
_UNSIGNED = 1
_LOSSY = ("JPEG", "MPO", "JPEG2000", "WEBP")
_MOST_CLASS = 255
NIFTI_SUFFIXES = (".nii", ".nii.gz")
# Not run here; with nibabel, NumPy and Pillow it writes the slices of a volume as 16-bit PNGs.
_NIFTI_COMMAND = (
    "import nibabel as n, numpy as np; from PIL import Image; v = n.load({name!r}).get_fdata(); "
    "v = (v - v.min()) / max(np.ptp(v), 1e-9) * 65535; "
    "[Image.fromarray(v[:, :, i].T.astype('uint16')).save(f'slice{{i:03}}.png') for i in range(v.shape[2])]"
)
_pillow_limit = threading.Lock()


class LoadedPictures(NamedTuple):
    """What came of some files.

    Args:
        images: float32 [n, channels, size, size] in [-1, 1]: the pictures that could be read, in their order.
        rows: For each of them, the number of its file.
        failures: For each other file, its number and what is wrong with it.
    """

    images: ImageBatch
    rows: list[int]
    failures: dict[int, str]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How picture files become squares of one size.

    Args:
        fit: What becomes of a picture that is not square. `stretch`: it is resized to a square, its sides each by its
            own factor. `crop`: its largest central square is kept, as MedMNIST did with its wide pictures. `pad`: black
            bars make it square.
        max_pixels: As for `read_image`.
        window: Likewise.
        frame: Likewise.

    Raises:
        ValueError: An unknown `fit`, or a number out of range.
    """

    fit: FitName = "stretch"
    max_pixels: int = MAX_PIXELS
    window: Window | None = None
    frame: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without a picture."""
        if self.fit not in get_args(FitName):
            raise ValueError(f"fit must be one of {', '.join(get_args(FitName))}; got {self.fit!r}")
        _check_numbers(self.max_pixels, self.frame)


def read_image(
    path: Path, *, max_pixels: int = MAX_PIXELS, window: Window | None = None, frame: int | None = None
) -> Tensor:
    """Read one picture, upright, at its own size and depth.

    Grey (1, 8 or 16 bit) stays grey; palettes and other colour spaces become RGB; transparent parts become black; the
    orientation that a camera noted is applied. Sixteen bits of a grey picture are all kept, and 65535 is white; a TIFF
    that declares 9 to 15 bits uses its own range. DICOM files are shown as `msf.data.dicom.read_dicom` says.

    Args:
        path: A file in any format that Pillow reads, or DICOM.
        max_pixels: Pixels that may be decoded. A larger JPEG is decoded at a half, a quarter or an eighth of its sides,
            which its format allows at the cost of the smaller picture; any other is refused before it is decoded. A
            colour picture of the default size needs about 1.2 GB on its way to the network.
        window: Which values are black and white, for DICOM and for grey pictures of more than 8 bits: centre and width
            in stored values (DICOM: in units of its modality); `auto`: the smallest and largest (DICOM: as the file
            says, where it does); `none`: the whole range. None: `auto` for DICOM, `none` for others.
        frame: Number of the picture in a file of several, from 1; None: the only one.

    Returns:
        uint8, or uint16 for deep grey pictures; [H, W, 1] or [H, W, 3].

    Raises:
        ValueError: Not a picture, damaged, too large, several pictures in one and no `frame`, or values whose range is
            unknown: floating point, 32-bit or signed whole numbers. The text names the file.
    """
    _check_numbers(max_pixels, frame)
    try:
        if path.is_file() and is_dicom(path):
            pixels = read_dicom(path, max_pixels=max_pixels, window=window, frame=frame)
        else:
            with _opened(path) as opened:
                _choose_frame(opened, frame)
                _reduce_to(opened, max_pixels)
                pixels = _pixels(ImageOps.exif_transpose(opened), _declared_bits(opened), window)
    except Exception as error:  # every format's decoder raises what it likes
        raise ValueError(f"{str(path)!r} must be an intact picture; got: {_reason(path, error)}") from error
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1))


def read_label_map(path: Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read a mask: the number of each pixel's class.

    Numbers are those of a palette, or grey levels; black and white is 0 and 1.

    Args:
        path: A file that keeps values as they are: PNG, TIFF, BMP, GIF.
        max_pixels: Pixels that may be decoded.

    Returns:
        uint8 [H, W].

    Raises:
        ValueError: Not a picture, damaged or too large; JPEG, which changes values; colours without a palette; numbers
            above 255. The text names the file.
    """
    try:
        with _opened(path) as opened:
            if opened.format in _LOSSY:
                raise ValueError(f"{opened.format}, which changes values: save masks as PNG")
            _choose_frame(opened, None)
            _reduce_to(opened, max_pixels)
            numbers = _class_numbers(ImageOps.exif_transpose(opened))
    except Exception as error:  # every format's decoder raises what it likes
        raise ValueError(f"{str(path)!r} must be an intact mask; got: {_reason(path, error)}") from error
    return torch.from_numpy(numbers)


def load_pictures(
    paths: Sequence[Path], size: int, channels: int, reading: Reading | None = None, **fields: Any
) -> LoadedPictures:
    """Read files and prepare what could be read; a broken file does not cost the others.

    Args:
        paths: Files.
        size: Height and width of the result.
        channels: Channels of the result, 1 or 3; colour becomes luminance where 1 are wanted.
        reading: How the files are read; None: `Reading()`.
        **fields: Fields of a `Reading` instead, such as `fit="crop"`.

    Raises:
        TypeError: A field that `Reading` has not, or both.
        ValueError: An unknown `fit`, or a size, a number of channels or of pixels out of range.
    """
    if reading is not None and fields:
        raise TypeError("reading must be given as a record or by its fields; got both")
    reading = Reading(**fields) if reading is None else reading
    if size < 1 or channels not in (1, 3):
        raise ValueError(f"size must be >= 1 and channels 1 or 3; got {size} and {channels}")
    prepared, rows, failures = [torch.empty(0, channels, size, size)], [], {}
    for row, path in enumerate(paths):
        try:
            image = read_image(path, max_pixels=reading.max_pixels, window=reading.window, frame=reading.frame)
        except ValueError as error:
            failures[row] = str(error)
            continue
        prepared.append(prepare_images(made_square(image, reading.fit)[None], size, channels, allow_grey=True))
        rows.append(row)
    return LoadedPictures(torch.cat(prepared), rows, failures)


def made_square(image: Tensor, fit: FitName) -> Tensor:
    """Return a picture [H, W, C] cropped or padded to a square; for `stretch`, which resizing does, as it is."""
    height, width = image.shape[:2]
    if fit == "stretch":
        return image
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = image.new_zeros(side, side, image.shape[2])
    square[top : top + height, left : left + width] = image
    return square


def _check_numbers(max_pixels: int, frame: int | None) -> None:
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be >= 1; got {max_pixels}")
    if frame is not None and frame < 1:
        raise ValueError(f"frame must be >= 1, as frames are counted from 1; got {frame}")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture without Pillow's own limit, which is another number for every version; ours comes next."""
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("no file")
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            Image.init()
            opened = Image.open(path, formats=[name for name in Image.ID if name not in _REFUSED_FORMATS])
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with opened:
        yield opened


def _choose_frame(image: Image.Image, frame: int | None) -> None:
    # A camera's second picture is a preview.
    n_pictures = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frame is None:
        if n_pictures > 1:
            raise ValueError(f"{n_pictures} pictures in one file: choose one with --frame, from 1 to {n_pictures}")
    elif frame > n_pictures:
        raise ValueError(f"{n_pictures} picture(s) in the file, and --frame asks for number {frame}")
    elif n_pictures > 1:
        image.seek(frame - 1)


def _reduce_to(image: Image.Image, max_pixels: int) -> None:
    """See to it that no more pixels are decoded, or refuse."""
    width, height = image.size
    if width * height <= max_pixels:
        return
    # A progressive JPEG holds all its coefficients in memory, at whatever size it is decoded.
    if image.format in ("JPEG", "MPO") and not image.info.get("progressive"):
        for reduction in _JPEG_REDUCTIONS:
            reduced = math.ceil(width / reduction), math.ceil(height / reduction)
            if reduced[0] * reduced[1] <= max_pixels:
                image.draft(None, reduced)
                if image.width * image.height <= max_pixels:
                    return
    raise ValueError(
        f"{width} x {height} pixels, more than max_pixels = {max_pixels}: make it smaller, or allow more (--max-pixels)"
    )


def _declared_bits(image: Image.Image) -> int | None:
    """Return the bits of whole numbers without a sign, at most 16; None where their range is unknown."""
    if not image.mode.startswith("I"):
        return 8
    if image.format != "TIFF":
        return 16 if image.format in _SIXTEEN_BITS or image.mode.startswith("I;16") else None
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(_BITS_TAG, (1,))[0])
    return bits if bits <= 16 and tags.get(_FORMAT_TAG, (_UNSIGNED,))[0] == _UNSIGNED else None


def _reason(path: Path, error: Exception) -> str:
    if not path.exists():
        return "no such file"
    if not path.is_file():
        return first_line(error)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if any(suffixes[-1:] == [suffix] for refused in _REFUSED_FORMATS.values() for suffix in refused):
        return "EPS files and icons are not read: save them as PNG"
    if path.suffix.lower() in NIFTI_SUFFIXES or suffixes == [".nii", ".gz"]:
        code = _NIFTI_COMMAND.format(name=str(path))
        return f"NIfTI, a volume, which is not read: slices of it are, made by: python -c {shlex.quote(code)}"
    return first_line(error)


def _class_numbers(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    values: np.ndarray[Any, Any] = np.asarray(image)
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        if values.min() < 0 or values.max() > _MOST_CLASS:
            raise ValueError(f"values from {values.min()} to {values.max()}, where classes are in [0, {_MOST_CLASS}]")
        return values.astype(np.uint8)
    if image.mode == "F":
        raise ValueError("floating-point values, where classes are whole numbers")
    channels = np.asarray(image.convert("RGB"))
    if (channels != channels[..., :1]).any():
        raise ValueError("colours without a palette: save it with one, or as grey levels that are numbers of classes")
    return channels[..., 0].copy()


def _pixels(image: Image.Image, bits: int | None, window: Window | None) -> np.ndarray[Any, Any]:
    if image.mode.startswith("I"):
        values: np.ndarray[Any, Any] = np.asarray(image)
        if bits is None or values.min() < 0 or values.max() >= 2**bits:
            raise ValueError(
                f"whole numbers (here from {values.min()} to {values.max()}) with a sign or more than 16 bits, whose "
                "range is unknown; save it with 8 or 16 bits and without a sign"
            )
        if window is not None and window != "none":
            levels = values.astype(np.float64)
            ends = (float(levels.min()), float(levels.max()))
            shades = spread(levels, *ends) if window == "auto" else apply_window(levels, *window)
            return np.rint(shades * 65535).astype(np.uint16)
        if bits == 16:
            return values.astype(np.uint16)
        filled: np.ndarray[Any, Any] = np.rint(values * (65535 / (2**bits - 1)))
        return filled.astype(np.uint16)
    if image.mode == "F":
        raise ValueError("floating-point values, whose range is unknown; save it with 8 or 16 bits")
    if image.has_transparency_data:
        is_grey = image.mode in (*_GREY_MODES, "LA", "La")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
        image = image.convert("RGB").getchannel(0) if is_grey else image
    return np.array(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
