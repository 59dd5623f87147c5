"""DICOM files as pictures. Of the header only what describes pixels is read, and nothing of it reaches a message."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from msf.data.window import Levels, VoiFunction, Window, apply_window, spread

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_HEADER_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "RescaleIntercept",
    "RescaleSlope", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData",
]  # fmt: skip
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_FUNCTIONS: tuple[VoiFunction, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG = ("1.2.840.10008.1.2.4.5", "1.2.840.10008.1.2.4.7", "1.2.840.10008.1.2.4.8")  # what pylibjpeg-libjpeg decodes


class RefusedDicomError(ValueError):
    """A DICOM file that is no picture for us; the text says why and holds nothing of the file's own."""


def is_dicom(path: Path) -> bool:
    """Return whether a file is one by its mark, or by its name."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_dicom(path: Path, *, max_pixels: int, window: Window | None, frame: int | None) -> np.ndarray[Any, Any]:
    """Return a frame as it is shown: modality and VOI transformations applied, MONOCHROME1 inverted, colour as RGB.

    Args:
        path: The file.
        max_pixels: Pixels that a frame may have.
        window: Centre and width in units after the modality transformation, such as Hounsfield units; `none`: the
            whole range that the stored bits have; `auto` or None: the file's first window or VOI LUT, else its smallest
            and largest value, padding left out.
        frame: Number of the frame, from 1; None: the only one.

    Returns:
        uint16 [H, W] with 65535 as white, or uint8 [H, W, 3].

    Raises:
        RefusedDicomError: See the text. Other errors of libraries do not leave this function.
    """
    try:
        import pydicom
    except ImportError:
        raise RefusedDicomError("DICOM files are read with the extra dicom: pip install 'medsymmflow[dicom]'") from None
    try:
        with _silently():
            _require_plain(pydicom, path)
            header = pydicom.dcmread(path, specific_tags=_HEADER_TAGS)
            number = _frame_number(header, max_pixels, frame)
            _require_decoder(header)
            stored = pydicom.pixels.pixel_array(header, index=number)
            if header.PhotometricInterpretation in _GREY:
                return _grey(header, stored, window, number)
            return _colour(header, stored)
    except RefusedDicomError:
        raise
    except pydicom.errors.InvalidDicomError:
        raise RefusedDicomError("no DICOM file: it lacks the mark DICM") from None
    except Exception as error:  # their texts may quote the file
        raise RefusedDicomError(
            f"a DICOM file that is damaged or incomplete, or packed in an unknown way ({type(error).__name__})"
        ) from None


@contextmanager
def _silently() -> Iterator[None]:
    """Let no warning of the library out: they quote values of the header."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _require_plain(pydicom: Any, path: Path) -> None:
    meta = pydicom.filereader.read_file_meta_info(path)
    if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:  # of any size once it is inflated
        raise RefusedDicomError("a deflated DICOM file: save it uncompressed, as with 'dcmconv +te' of DCMTK")


def _frame_number(header: Any, max_pixels: int, frame: int | None) -> int:
    """Return the number of the wanted frame, from 0, where header and wishes allow one."""
    if not any(name in header for name in _PIXELS):
        raise RefusedDicomError("a DICOM file without pixels")
    rows, columns = int(header.Rows), int(header.Columns)
    if rows * columns > max_pixels:
        raise RefusedDicomError(
            f"{columns} x {rows} pixels, more than max_pixels = {max_pixels}: make it smaller, or allow more "
            "(--max-pixels)"
        )
    if header.PhotometricInterpretation not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise RefusedDicomError(f"a DICOM file with pixels that are none of {', '.join((*_GREY, *_COLOUR))}")
    n_frames = int(header.get("NumberOfFrames") or 1)
    if frame is None and n_frames > 1:
        raise RefusedDicomError(f"{n_frames} frames in one file: choose one with --frame, from 1 to {n_frames}")
    if frame is not None and frame > n_frames:
        raise RefusedDicomError(f"{n_frames} frame(s) in the file, and --frame asks for number {frame}")
    return (frame or 1) - 1


def _require_decoder(header: Any) -> None:
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    try:
        decoder = get_decoder(syntax)
        if decoder.is_available:
            return
    except NotImplementedError:
        pass
    remedy = (
        "pip install pylibjpeg-libjpeg (GPL), or convert it with 'dcmdjpeg' of DCMTK"
        if syntax.startswith(_JPEG)
        else "pip install 'medsymmflow[dicom]', or convert it with 'gdcmconv --raw'"
    )
    raise RefusedDicomError(f"a DICOM file whose compression cannot be undone here: {remedy}")


def _grey(header: Any, stored: np.ndarray[Any, Any], window: Window | None, frame: int) -> np.ndarray[Any, Any]:
    is_padding = _padding(header, stored)
    values, whole = _modality(header, stored, frame)
    if not np.isfinite(values).all():
        raise RefusedDicomError("a DICOM file with values that are not finite")
    shades = _shades(header, values, window, frame, whole)
    if shades is None:
        shown = values[~is_padding] if not is_padding.all() else values
        shades = spread(values, float(shown.min()), float(shown.max()))
    if header.PhotometricInterpretation == "MONOCHROME1":
        shades = 1 - shades
    return np.rint(shades * 65535).astype(np.uint16)


def _padding(header: Any, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    value = header.get("PixelPaddingValue")
    return np.zeros(stored.shape, bool) if value is None else stored == value


def _modality(header: Any, stored: np.ndarray[Any, Any], frame: int) -> tuple[Levels, tuple[float, float] | None]:
    """Return values in the units of the modality, and the range that they might have; None: unknown."""
    from pydicom.pixels import apply_modality_lut

    if "ModalityLUTSequence" in header:
        _, _, bits = header.ModalityLUTSequence[0].LUTDescriptor
        return apply_modality_lut(stored, header).astype(np.float64), (0.0, 2.0**bits - 1)
    group = _functional_group(header, "PixelValueTransformationSequence", frame)
    slope = float(group.get("RescaleSlope", 1))
    intercept = float(group.get("RescaleIntercept", 0))
    values = stored.astype(np.float64) * slope + intercept
    if "PixelData" not in header:
        return values, None
    bits = int(header.BitsStored)
    lowest = -(2 ** (bits - 1)) if header.PixelRepresentation else 0
    ends = sorted(end * slope + intercept for end in (lowest, lowest + 2**bits - 1))
    return values, (ends[0], ends[1])


def _shades(
    header: Any, values: Levels, window: Window | None, frame: int, whole: tuple[float, float] | None
) -> Levels | None:
    """Return values in [0, 1], or None where neither the caller nor the file says which are black and white."""
    if window == "none":
        if whole is None:
            raise RefusedDicomError("floating-point pixels, whose range is unknown: give a window with --window")
        return spread(values, *whole)
    if isinstance(window, tuple):
        return apply_window(values, *window)
    group = _functional_group(header, "FrameVOILUTSequence", frame)
    if "VOILUTSequence" in group:
        from pydicom.pixels import apply_voi

        _, _, bits = group.VOILUTSequence[0].LUTDescriptor
        return spread(apply_voi(np.rint(values).astype(np.int64), group).astype(np.float64), 0, 2.0**bits - 1)
    if "WindowCenter" not in group or "WindowWidth" not in group:
        return None
    function = group.get("VOILUTFunction") or "LINEAR"
    if function not in _FUNCTIONS:
        raise RefusedDicomError("a DICOM file with an unknown function of its window: give one with --window")
    try:
        return apply_window(values, _first(group.WindowCenter), _first(group.WindowWidth), function)
    except ValueError:
        raise RefusedDicomError("a DICOM file whose own window shows nothing: give one with --window") from None


def _functional_group(header: Any, name: str, frame: int) -> Any:
    """Return what holds for a frame: its own group, the one that frames share, or the file's header itself."""
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    for groups in (own[frame : frame + 1], header.get("SharedFunctionalGroupsSequence") or []):
        for group in groups:
            if group.get(name):
                return group.get(name)[0]
    return header


def _first(value: Any) -> float:
    return float(value) if np.isscalar(value) or not hasattr(value, "__iter__") else float(value[0])


def _colour(header: Any, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bits = int(header.BitsStored)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        stored = apply_color_lut(stored, header)[..., :3]
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise RefusedDicomError("a DICOM file with colours that are not three")
    levels: np.ndarray[Any, Any] = stored if bits == 8 else np.rint(stored * (255 / (2**bits - 1)))
    return levels.astype(np.uint8)
