"""The commands on flows that run on latents; their flags for training are tested with the training."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from msf.cli import main
from msf.medsymmflow import MedSymmFlow


@pytest.fixture
def msf(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["msf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def checkpoint(make_latent_flow, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latent-run")
    make_latent_flow().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    draw = np.random.default_rng(0)
    arrays = {}
    for split, n in {"train": 6, "val": 3, "test": 6}.items():
        arrays[f"{split}_images"] = draw.integers(0, 256, (n, 40, 40, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 3
    np.savez(path, **arrays)
    return path


def test_evaluation_reads_out_as_asked(msf, checkpoint, npz, tmp_path):
    found = {}
    for name in ("latent", "decoded"):
        arguments = ("--checkpoint", checkpoint, "--dataset", npz, "--n-samples", 2, "--device", "cpu")
        code, out, err = msf("evaluate", *arguments, "--readout", name, "--json", tmp_path / f"{name}.json")
        assert code == 0, err
        assert name in out
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert [found[name]["readout"] for name in found] == ["latent", "decoded"]
    assert found["latent"]["scores"] != found["decoded"]["scores"]


def test_classification_reads_out_as_asked(msf, checkpoint, tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    arguments = ("--checkpoint", checkpoint, "--n-samples", 2, "--device", "cpu", "--json", tmp_path / "rows.json")
    code, _, err = msf("classify", tmp_path / "a.png", *arguments, "--readout", "decoded")
    assert code == 0, err
    assert json.loads((tmp_path / "rows.json").read_text())["rows"][0]["readout"] == "decoded"


def test_an_unknown_readout_ends_with_code_two(msf, checkpoint, npz):
    code, _, err = msf("evaluate", "--checkpoint", checkpoint, "--dataset", npz, "--readout", "pixels")
    assert code == 2
    assert "pixels" in err


def test_info_names_shapes_and_the_autoencoder(msf, checkpoint, autoencoder, tmp_path):
    code, _, err = msf("info", "--checkpoint", checkpoint, "--device", "cpu", "--json", tmp_path / "info.json")
    assert code == 0, err
    described = json.loads((tmp_path / "info.json").read_text())["checkpoint"]
    assert described["joint_state"] == {"image": [4, 16, 16], "semantic": [4, 16, 16]}
    assert described["autoencoder_fingerprint"] == autoencoder.fingerprint


def test_a_latent_file_of_the_authors_layout_is_imported_with_a_local_autoencoder(
    msf, make_latent_flow, autoencoder_folder, tmp_path
):
    torch.save(make_latent_flow(n_classes=8).network.state_dict(), tmp_path / "official.pt")
    arguments = ("--n-classes", 8, "--head-channels", 32, "--image-size", 32, "--out", tmp_path / "imported")
    code, out, err = msf(
        "import-official", tmp_path / "official.pt", *arguments, "--autoencoder-source", autoencoder_folder
    )
    assert code == 0, err
    assert "inferred: space = latent" in out
    assert f"assumed (not in the file): autoencoder = {autoencoder_folder}" in out
    assert MedSymmFlow.from_pretrained(tmp_path / "imported").generate([3], n_steps=1).shape == (1, 3, 32, 32)


def test_an_autoencoder_that_is_nowhere_is_one_sentence(msf, make_latent_flow, tmp_path):
    torch.save(make_latent_flow(n_classes=8).network.state_dict(), tmp_path / "official.pt")
    arguments = ("--n-classes", 8, "--head-channels", 32, "--image-size", 32, "--out", tmp_path / "imported")
    code, _, err = msf(
        "import-official", tmp_path / "official.pt", *arguments, "--autoencoder-source", "no/such/folder"
    )
    assert code == 2
    assert err.count("\n") == 1
    assert "autoencoder must be an existing folder or a hub id" in err
    assert not (tmp_path / "imported").exists()
