"""Kinds of DICOM files, made by pydicom, and the values that a reader must find in them; headers name a patient."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from tests.msf.data.picture_kinds import RGB, kind, refused

PATIENT = "Mustermann^Erika"
STORED = np.array([[0, 100, 500], [1000, 2000, 4095]], np.uint16)
SIGNED = np.array([[-1000, -100, 0], [40, 400, 1000]], np.int16)


def dataset(pixels, photometric="MONOCHROME2", bits=None, syntax=ExplicitVRLittleEndian, **elements):
    """Return a data set of pixels [H, W], [H, W, 3] or [F, H, W]."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = syntax
    made = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.PatientName, made.PatientID, made.PatientBirthDate = PATIENT, "4711-0815", "19640812"
    made.PhotometricInterpretation = photometric
    is_colour = photometric[:3] in ("RGB", "YBR")
    made.SamplesPerPixel = 3 if is_colour else 1
    if is_colour:
        made.PlanarConfiguration = 0
    frames = pixels.shape[: pixels.ndim - (3 if is_colour else 2)]
    if frames:
        made.NumberOfFrames = frames[0]
    made.Rows, made.Columns = pixels.shape[len(frames) : len(frames) + 2]
    made.BitsAllocated = 8 * pixels.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    made.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    made["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def dicom(*arguments, compress=None, change=None, cut=None, suffix=".dcm", **elements):
    """Return what writes such a file."""

    def make(path):
        made = dataset(*arguments, **elements)
        if compress is not None:
            made.compress(compress)
        if change is not None:
            change(made)
        file = path.with_suffix(suffix)
        pydicom.dcmwrite(file, made, enforce_file_format=True)
        if cut is not None:
            file.write_bytes(file.read_bytes()[:cut])
        return file

    return make


def lut(first, values, bits=16):
    entry = Dataset()
    entry.LUTDescriptor = [len(values), first, bits]
    entry.LUTData = np.asarray(values).astype("<u2").tobytes()
    entry["LUTData"].VR = "OW"
    return [entry]


def shades(values, low, high):
    """Return values between black and white as 16 bits."""
    levels = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)
    return np.rint(levels * 65535)[..., None]


def windowed(values, centre, width):
    levels = np.clip((np.asarray(values, np.float64) - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    return np.rint(levels * 65535)[..., None]


WINDOW = {"WindowCenter": 40, "WindowWidth": 400}
HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024}
kind("dicom, smallest to largest", dicom(STORED, bits=12), shades(STORED, 0, 4095))
kind("dicom, part of the range", dicom(STORED // 2, bits=12), shades(STORED // 2, 0, 2047))
kind("dicom, whole range", dicom(STORED // 2, bits=12), shades(STORED // 2, 0, 4095), window="none")
kind("dicom, 8 bits", dicom((STORED // 17).astype(np.uint8)), shades(STORED // 17, 0, 240))
kind("dicom, inverted", dicom(STORED, "MONOCHROME1", 12), 65535 - shades(STORED, 0, 4095))
kind("dicom, own window", dicom(STORED, bits=12, **HOUNSFIELD, **WINDOW), windowed(STORED - 1024.0, 40, 400))
kind(
    "dicom, inverted window",
    dicom(STORED, "MONOCHROME1", 12, **HOUNSFIELD, **WINDOW),
    65535 - windowed(STORED - 1024.0, 40, 400),
)
kind(
    "dicom, first of two windows",
    dicom(STORED, bits=12, WindowCenter=[500, 9], WindowWidth=[800, 9]),
    windowed(STORED, 500, 800),
)
kind(
    "dicom, given window",
    dicom(STORED, bits=12, **HOUNSFIELD, **WINDOW),
    windowed(STORED - 1024.0, 300, 1500),
    window=(300.0, 1500.0),
)
kind(
    "dicom, window is not used", dicom(STORED, bits=12, **HOUNSFIELD, **WINDOW), shades(STORED, 0, 4095), window="none"
)
kind(
    "dicom, exact window",
    dicom(STORED, bits=12, WindowCenter=1000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT"),
    shades(STORED, 500, 1500),
)
kind(
    "dicom, sigmoid",
    dicom(STORED, bits=12, WindowCenter=1000, WindowWidth=800, VOILUTFunction="SIGMOID"),
    np.rint(65535 / (1 + np.exp(-4 * (STORED[..., None] - 1000.0) / 800))),
)
kind(
    "dicom, window of one value",
    dicom(STORED, bits=12, WindowCenter=500.5, WindowWidth=1),
    65535 * (STORED[..., None] > 500),
)
kind("dicom, signed", dicom(SIGNED), shades(SIGNED, -1000, 1000))
kind("dicom, signed, whole range", dicom(SIGNED, bits=12), shades(SIGNED, -2048, 2047), window="none")
kind(
    "dicom, falling slope",
    dicom(STORED, bits=12, RescaleSlope=-1, RescaleIntercept=4095),
    shades(4095.0 - STORED, 0, 4095),
)
kind(
    "dicom, broken slope",
    dicom(STORED, bits=12, RescaleSlope="0.5", RescaleIntercept="-3", WindowCenter=500, WindowWidth=600),
    windowed(STORED * 0.5 - 3, 500, 600),
)
TABLE = np.arange(4096)[::-1] * 16
kind(
    "dicom, modality table",
    dicom(STORED, bits=12, ModalityLUTSequence=lut(0, TABLE)),
    shades(TABLE[STORED], TABLE[4095], TABLE[0]),
)
kind("dicom, VOI table", dicom(STORED, bits=12, VOILUTSequence=lut(0, TABLE)), shades(TABLE[STORED], 0, 65535))
kind(
    "dicom, VOI table that begins later",
    dicom(STORED, bits=12, VOILUTSequence=lut(100, np.arange(1000) * 4, 12)),
    shades(np.clip(STORED.astype(int) - 100, 0, 999) * 4, 0, 4095),
)
kind(
    "dicom, VOI table before window",
    dicom(STORED, bits=12, VOILUTSequence=lut(0, TABLE), **WINDOW),
    shades(TABLE[STORED], 0, 65535),
)
kind("dicom, padding left out", dicom(SIGNED, PixelPaddingValue=-1000), shades(SIGNED, -100, 1000))
kind("dicom, constant", dicom(STORED * 0 + 7, bits=12), np.zeros((2, 3, 1)))
kind("dicom, colour", dicom(RGB, "RGB"), RGB)
kind(
    "dicom, colour by planes",
    dicom(
        RGB,
        "RGB",
        change=lambda d: (
            d.update({"PlanarConfiguration": 1}) or setattr(d, "PixelData", RGB.transpose(2, 0, 1).tobytes())
        ),
    ),
    RGB,
)
kind("dicom, colour of 16 bits", dicom(RGB.astype(np.uint16) * 257, "RGB"), RGB)
YBR = pydicom.pixels.convert_color_space(RGB, "RGB", "YBR_FULL")
kind("dicom, YBR", dicom(YBR, "YBR_FULL"), RGB, 2)
HALF = np.repeat(np.array([[[10, 200, 90]], [[250, 30, 60]]], np.uint8), 2, 1)  # pairs of pixels of one colour
HALF_YBR = pydicom.pixels.convert_color_space(HALF, "RGB", "YBR_FULL")
kind(
    "dicom, YBR, half the colour",
    dicom(
        HALF_YBR,
        "YBR_FULL_422",
        change=lambda d: setattr(
            d, "PixelData", b"".join(bytes([p[0][0], p[1][0], p[0][1], p[0][2]]) for p in HALF_YBR)
        ),
    ),
    HALF,
    2,
)
COLOURS = np.arange(256) * 257


def palette(made):
    for name, values in (("Red", COLOURS), ("Green", COLOURS[::-1]), ("Blue", COLOURS * 0)):
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", values.astype("<u2").tobytes())


INDEX = np.array([[0, 7, 128], [255, 200, 10]], np.uint8)
kind("dicom, palette", dicom(INDEX, "PALETTE COLOR", change=palette), np.stack([INDEX, 255 - INDEX, INDEX * 0], -1))
FRAMES = np.stack([STORED, STORED[::-1], STORED[:, ::-1]])
kind("dicom, second frame", dicom(FRAMES, bits=12), shades(STORED[::-1], 0, 4095), frame=2)
refused("dicom, several frames", dicom(FRAMES, bits=12), "3 frames in one file: choose one with --frame, from 1 to 3")
refused("dicom, frame that there is not", dicom(FRAMES, bits=12), "3 frame(s) in the file", frame=4)


def enhanced(made):
    def group(slope, centre):
        values, voi, entry = Dataset(), Dataset(), Dataset()
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, 0, "HU"
        voi.WindowCenter, voi.WindowWidth = centre, 1000
        entry.PixelValueTransformationSequence, entry.FrameVOILUTSequence = [values], [voi]
        return entry

    made.SharedFunctionalGroupsSequence = [group(9, 9)]
    made.PerFrameFunctionalGroupsSequence = [group(1, 500), group(2, 3000), group(1, 500)]


kind(
    "dicom, groups of frames",
    dicom(FRAMES, bits=12, change=enhanced),
    windowed(STORED[::-1] * 2.0, 3000, 1000),
    frame=2,
)
for name, syntax in (("implicit", ImplicitVRLittleEndian), ("big-endian", ExplicitVRBigEndian)):
    kind(f"dicom, {name}", dicom(STORED, bits=12, syntax=syntax), shades(STORED, 0, 4095))
SQUARE = np.arange(4096, dtype=np.uint16).reshape(64, 64)
kind("dicom, run lengths", dicom(SQUARE, bits=12, compress=RLELossless), shades(SQUARE, 0, 4095))
kind("dicom, JPEG 2000", dicom(SQUARE, bits=12, compress=JPEG2000Lossless), shades(SQUARE, 0, 4095))
kind("dicom, without suffix", dicom(STORED, bits=12, suffix=""), shades(STORED, 0, 4095))


def floating(made):
    del made.PixelData
    made.BitsAllocated = 32
    for name in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(made, name)
    made.FloatPixelData = (STORED / 4095).astype("<f4").tobytes()


kind("dicom, floating point", dicom(STORED, change=floating), shades(STORED, 0, 4095), 1)
refused("dicom, floating point, whole range", dicom(STORED, change=floating), "whose range is unknown", window="none")
refused("dicom, no pixels", dicom(STORED, change=lambda d: d.pop("PixelData")), "without pixels")
refused("dicom, half a file", dicom(np.zeros((64, 64), np.uint16), cut=2000), "damaged or incomplete")
refused("dicom, a header only", dicom(STORED, cut=200), "")
refused(
    "dicom, size of a giant",
    dicom(STORED, change=lambda d: d.update({"Rows": 65535, "Columns": 65535})),
    "65535 x 65535 pixels",
)
refused("dicom, other pixels", dicom(STORED, "HSV"), "none of MONOCHROME1")
refused(
    "dicom, window without width", dicom(STORED, bits=12, WindowCenter=5, WindowWidth=0), "own window shows nothing"
)
refused("dicom, deflated", dicom(STORED, syntax=DeflatedExplicitVRLittleEndian), "a deflated DICOM file")
refused("dicom, unknown function", dicom(STORED, **WINDOW, VOILUTFunction="CUBIC"), "unknown function")
refused(
    "dicom by name only",
    lambda p: p.with_suffix(".dcm").write_bytes(b"x" * 300) and p.with_suffix(".dcm"),
    "lacks the mark",
)


def lossless_jpeg(made):
    made.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    made.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    made["PixelData"].is_undefined_length = True
