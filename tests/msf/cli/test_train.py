"""`msf train`: what it needs before it begins, what its JSON says, extensions, and several processes of a launcher."""

import json
import os
import subprocess
import sys

import pytest
import torch

from msf.checkpoints.folder import load_checkpoint
from tests.msf.cli.conftest import TINY

pytestmark = pytest.mark.slow


def flags(**changes):
    return [f"--{name.replace('_', '-')}={value}" for name, value in {**TINY, **changes}.items()]


def test_a_dry_run_tells_what_a_training_needs_and_writes_nothing(msf, tiny_npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = msf("train", "--dry-run", "--json", "r.json", *flags(dataset=tiny_npz, epochs=7, validate_every=3))
    assert code == 0
    assert os.listdir(tmp_path) == ["r.json"]
    found = json.loads((tmp_path / "r.json").read_text())
    assert (found["n_epochs"], found["n_steps"], found["n_validations"], found["n_processes"]) == (7, 14, 3, 1)
    weights = load_checkpoint_of_one_epoch(msf, tiny_npz, tmp_path)
    assert found["n_parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert found["state_bytes"] <= (tmp_path / "run" / "training_state.pt").stat().st_size < 2 * found["state_bytes"]
    expected = 14 * found["step_seconds"] + 3 * found["validation_seconds"]
    assert found["seconds"] == pytest.approx(expected)
    assert found["peak_memory_bytes"] > 2**20
    assert "n_parameters" in out


def load_checkpoint_of_one_epoch(msf, archive, folder):
    assert msf("train", "--out", folder / "run", *flags(dataset=archive))[0] == 0
    return load_checkpoint(folder / "run").state_dict


def test_the_json_says_what_the_network_was_made_with(msf, tiny_npz, tmp_path):
    out = tmp_path / "t.json"
    assert msf("train", "--out", tmp_path / "run", "--json", out, *flags(dataset=tiny_npz, seed=3))[0] == 0
    content = json.loads(out.read_text())
    made_with = content["provenance"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert made_with["checkpoint_sha256"] == config["tensors_sha256"]
    assert made_with["experiment"] == config["experiment"]
    assert (made_with["seed"], made_with["precision"], made_with["device"]) == (3, "fp32", "cpu")
    assert made_with["versions"]["torch"] == torch.__version__
    assert content["format"] == "msf-train/1"
    assert len(content["history"]) == content["n_epochs"] == 1


def test_a_run_is_extended_and_another_network_is_where_it_began(msf, tiny_npz, tmp_path):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    assert msf("train", "--out", run, *flags(dataset=tiny_npz))[0] == 0
    code, out, err = msf("train", "--out", run, "--extend", "1", *flags(dataset=tiny_npz))
    assert (code, "best_epoch" in out) == (0, True), err
    assert len(json.loads((run / "history.json").read_text())) == 2
    code, _, err = msf("train", "--out", run, "--extend", "0", *flags(dataset=tiny_npz))
    assert code == 2
    assert "extend must be numbers of epochs >= 1" in err
    out = tmp_path / "t.json"
    code, _, err = msf("train", "--out", tuned, "--init", run, "--json", out, *flags(dataset=tiny_npz, code="one_hot"))
    assert code == 0, err
    taken = json.loads(out.read_text())["provenance"]["taken_over"]
    assert "of input_blocks.0.0.weight, out.2.weight, out.2.bias the image channels only" in taken


def launch(n, arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "msf", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=180, env=environment)


def test_a_launcher_s_processes_train_one_network_and_one_speaks(tiny_npz, tmp_path):
    arguments = ["train", "--out", str(tmp_path / "two"), "--json", str(tmp_path / "t.json")]
    finished = launch(2, [*arguments, *flags(dataset=tiny_npz)])
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("Trained on tiny") == 1
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["provenance"]["n_processes"] == 2
    alone = subprocess.run(
        [sys.executable, "-m", "msf", "train", "--out", str(tmp_path / "one"), *flags(dataset=tiny_npz)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    (one,) = json.loads((tmp_path / "one" / "history.json").read_text())
    assert content["history"][0]["train_loss"] == pytest.approx(one["train_loss"], abs=1e-6)


def test_a_process_that_fails_is_named_by_the_others(tiny_npz, tmp_path):
    (tmp_path / "file").write_text("")
    finished = launch(2, ["train", "--out", str(tmp_path / "file"), *flags(dataset=tiny_npz)])
    assert finished.returncode != 0
    assert "msf: process 0 of 2: folder must be a folder" in finished.stderr
    assert "Trained" not in finished.stdout
