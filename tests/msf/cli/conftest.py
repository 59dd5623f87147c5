import sys

import numpy as np
import pytest

from msf.cli import main
from msf.data import make_phantoms

TINY = {
    "image-size": 8,
    "code": "simplex",
    "base-channels": 32,
    "channel-multipliers": 1,
    "n-res-blocks": 1,
    "attention-down-rates": 1,
    "head-channels": 32,
    "epochs": 1,
    "batch-size": 16,
    "validation-samples": 1,
    "validate-every": 1,
    "precision": "fp32",
    "n-samples": 2,
    "device": "cpu",
}


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
def tiny_npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    arrays = make_phantoms(0, {"train": 32, "val": 15, "test": 20})
    np.savez(path, **{name: values.numpy() for name, values in arrays.items()})
    return path


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, tiny_npz):
    return trained(tmp_path_factory.mktemp("run"), tiny_npz)


def trained(folder, dataset, **more):
    """Run `msf train` with the tiny settings and return the folder."""
    flags = {"dataset": dataset, "out": folder, **TINY, **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["msf", "train", *(f"--{name}={value}" for name, value in flags.items())])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return folder
