"""Every kind of picture file is read with its very values, or refused in one line that says why."""

import sys
from pathlib import Path

import numpy as np
import pytest

from msf.data import load_pictures, read_image
from tests.msf.data import picture_kinds

pydicom = pytest.importorskip("pydicom")
from tests.msf.data import dicom_kinds  # noqa: E402 - it needs pydicom

KINDS, REFUSED = picture_kinds.KINDS, picture_kinds.REFUSED


def test_there_are_enough_kinds():
    assert len(KINDS) >= 45
    assert len(KINDS) + len(REFUSED) >= 110


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_read_with_its_values(tmp_path, name):
    kind = KINDS[name]
    image = read_image(kind.make(tmp_path / "picture"), **kind.options).numpy()
    assert image.shape == kind.expected.shape
    assert image.dtype == (np.uint16 if name.startswith("16") or image.dtype == np.uint16 else np.uint8)
    assert np.abs(image.astype(np.float64) - kind.expected).max() <= kind.tolerance


@pytest.mark.parametrize("name", REFUSED)
def test_a_kind_that_cannot_be_read_is_refused_in_one_line(tmp_path, name):
    kind = REFUSED[name]
    path = kind.make(tmp_path / "picture")
    loaded = load_pictures([path], 8, 1, **kind.options)
    assert not loaded.rows
    assert str(path) in loaded.failures[0]
    assert kind.expected in loaded.failures[0]
    assert "\n" not in loaded.failures[0]


@pytest.mark.parametrize("name", [name for name in {**KINDS, **REFUSED} if name.startswith("dicom")])
def test_nothing_of_a_patient_leaves_the_reader(tmp_path, name, capfd, recwarn, caplog):
    kind = {**KINDS, **REFUSED}[name]
    loaded = load_pictures([kind.make(tmp_path / "picture")], 8, 1, **kind.options)
    recwarn.clear()  # of making the file
    loaded = load_pictures([next(tmp_path.iterdir())], 8, 1, **kind.options)
    captured = capfd.readouterr()
    told = " ".join([*loaded.failures.values(), captured.out, captured.err, caplog.text, *map(str, recwarn.list)])
    assert not any(part in told for part in (*dicom_kinds.PATIENT.split("^"), "4711", "1964"))
    assert not captured.out + captured.err


def test_a_value_that_does_not_fit_its_field_is_not_quoted(tmp_path, capfd, recwarn):
    def spoil(made):
        made.add_new("WindowCenter", "DS", "40")
        made["WindowCenter"]._value = "Mustermann"

    with pydicom.config.disable_value_validation():
        path = dicom_kinds.dicom(dicom_kinds.STORED, bits=12, change=spoil, WindowWidth=400)(tmp_path / "x")
    recwarn.clear()
    failures = load_pictures([path], 8, 1).failures
    assert "give one with --window" in failures[0]
    assert "Mustermann" not in failures[0] + "".join(capfd.readouterr()) + str(recwarn.list)


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    path = dicom_kinds.dicom(dicom_kinds.STORED)(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError, match=r"pip install 'medsymmflow\[dicom\]'"):
        read_image(path)


def test_a_compression_without_its_decoder_is_named_with_what_decodes_it(tmp_path, monkeypatch):
    path = dicom_kinds.dicom(dicom_kinds.STORED, change=dicom_kinds.lossless_jpeg)(tmp_path / "x")
    monkeypatch.setattr(pydicom.pixels.get_decoder(pydicom.uid.JPEGLosslessSV1), "_available", {})
    with pytest.raises(ValueError, match="cannot be undone here: pip install pylibjpeg-libjpeg"):
        read_image(path)


def test_windows_agree_with_pydicom(tmp_path):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4096, (16, 16), np.uint16)
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        fields = {"WindowCenter": 900, "WindowWidth": 1234, "VOILUTFunction": function, "RescaleIntercept": -500}
        path = dicom_kinds.dicom(stored, bits=12, RescaleSlope=2, **fields)(tmp_path / function)
        header = pydicom.dcmread(path)
        modality = pydicom.pixels.apply_modality_lut(header.pixel_array, header)
        theirs = pydicom.pixels.apply_windowing(modality, header)
        low, high = -500, 4095 * 2 - 500  # what pydicom maps a window to
        expected = (theirs - low) / (high - low) * 65535
        assert np.abs(read_image(path).numpy()[..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_RLE.dcm",
        "JPEG2000.dcm",
        "SC_rgb_small_odd.dcm",
        "examples_ybr_color.dcm",
        "examples_palette.dcm",
        "liver_1frame.dcm",
    ],
)
def test_files_of_real_devices_are_read(name):
    path = pydicom.data.get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("this pydicom comes without that file")
    image = read_image(Path(path), frame=1)
    assert image.float().std() > 0
