"""Killed at twenty moments and resumed, a training ends with the weights of the one that nothing happened to."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from msf.checkpoints.folder import load_checkpoint
from msf.data import make_phantoms
from msf.training.train import HISTORY_FILE, STATE_FILE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="forks, and signals of POSIX")]


def test_twenty_kills_lose_not_a_bit(tmp_path):
    archive = tmp_path / "tiny.npz"
    arrays = make_phantoms(0, {"train": 24, "val": 10, "test": 5})
    np.savez(archive, **{name: values.numpy() for name, values in arrays.items()})
    script = Path(__file__).with_name("killed.py")
    finished = subprocess.run(
        [sys.executable, script, tmp_path, archive],
        check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    whole, *killed = json.loads(finished.stdout)["outcomes"]
    assert whole["codes"] == [0], (tmp_path / "log").read_text()
    assert len(killed) == 20

    def state(name):
        return torch.load(tmp_path / name / STATE_FILE, weights_only=True)

    expected, best = state("whole"), load_checkpoint(tmp_path / "whole").state_dict
    for outcome in killed:
        name = outcome["name"]
        ended = -signal.SIGKILL if outcome["signal"] == signal.SIGKILL else 128 + signal.SIGTERM
        assert outcome["codes"] == [ended, 0], (outcome, (tmp_path / "log").read_text())
        found = state(name)
        for part in ("network", "average"):
            assert found[part].keys() == expected[part].keys()
            assert all(torch.equal(found[part][key], value) for key, value in expected[part].items()), outcome
        for number, moments in expected["optimizer"]["state"].items():
            assert all(torch.equal(found["optimizer"]["state"][number][key], value) for key, value in moments.items())
        found_best = load_checkpoint(tmp_path / name).state_dict
        assert all(torch.equal(found_best[key], value) for key, value in best.items()), outcome
        history = [(tmp_path / folder / HISTORY_FILE).read_text() for folder in ("whole", name)]
        assert history[0] == history[1]
        left = [path.name for path in (tmp_path / name).iterdir() if path.name.startswith(".")]
        assert not left, outcome
