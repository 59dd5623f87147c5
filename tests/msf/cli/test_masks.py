"""Classes of pixels on the command line: packed, trained, judged; commands about whole pictures refuse."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from msf.data.phantoms import make_phantom_masks
from tests.msf.cli.conftest import TINY

SCHEMA = Path(__file__).parents[3] / "docs" / "schemas" / "evaluate-pixels.schema.json"
NAMES = "background,cytoplasm,nucleus"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("cells")
    arrays = make_phantom_masks(0, {"all": 40})
    for kind in ("pictures", "masks"):
        (root / kind).mkdir()
    for number in range(40):
        for kind, name in (("pictures", "all_images"), ("masks", "all_labels")):
            Image.fromarray(arrays[name][number].numpy()).save(root / kind / f"{number:02}.png")
    return root


@pytest.fixture
def trained(msf, folders, tmp_path):
    npz = tmp_path / "cells.npz"
    code, out, err = msf(
        "pack", folders / "pictures", "--masks", folders / "masks", "--class-names", NAMES, "--out", npz
    )
    assert code == 0, err
    assert "nucleus" in out
    flags = {"dataset": npz, "out": tmp_path / "run", **TINY}
    code, _, err = msf("train", *(f"--{name}={value}" for name, value in flags.items()))
    assert code == 0, err
    return tmp_path / "run"


def test_masks_are_packed_trained_on_and_judged(msf, trained, folders, tmp_path):
    file = tmp_path / "m.json"
    code, out, err = msf("evaluate", "--checkpoint", trained, "--json", file, "--device", "cpu")
    assert code == 0, err
    figures = json.loads(file.read_text())
    jsonschema.validate(figures, json.loads(SCHEMA.read_text()))
    assert set(figures["iou"]) == set(NAMES.split(","))
    n = figures["n_images"]
    assert figures["n_pixels"] == n * 8 * 8 == np.sum(figures["confusion_matrix"]["counts"])
    assert "mean_iou" in out
    assert "dice" in out
    # A folder with its masks is judged as it is.
    code, _, err = msf(
        "evaluate", "--checkpoint", trained, "--dataset", folders / "pictures", "--masks", folders / "masks",
        "--only-test", "--n-samples", 1, "--json", file, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(file.read_text())["n_images"] == 40


def test_commands_about_whole_pictures_refuse_before_they_work(msf, trained, folders, tmp_path):
    refused = {
        ("classify", folders / "pictures", "--checkpoint", trained): "gives them to pixels",
        ("report", trained, "--out", tmp_path / "r.html"): "gives them to pixels",
        ("evaluate", "--checkpoint", trained, "--per-image", tmp_path / "t.csv"): "gives every pixel a class",
        ("evaluate", "--checkpoint", trained, "--dataset", "phantoms"): "class",
    }
    for arguments, words in refused.items():
        code, _, err = msf(*arguments, "--device", "cpu")
        assert code == 2, err
        assert words in err.splitlines()[-1]
    assert not (tmp_path / "r.html").exists()
