import csv
import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from msf.data import load_dataset
from msf.interruption import Interrupted
from tests.msf.cli.conftest import TINY

EVALUATION_KEYS = {
    "split", "n_images", "accuracy", "balanced_accuracy", "auc_macro_ovr", "auc_medmnist", "nll", "brier", "ece",
    "aurc", "e_aurc", "augrc", "selective", "n_samples", "n_steps", "method", "nfe", "seed", "samples_per_second",
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path, tiny_npz):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(load_dataset(tiny_npz).test.images[:5].numpy()):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_training_leaves_a_checkpoint_that_the_other_commands_load(tiny_run):
    assert {"config.json", "model.safetensors", "training_state.pt", "history.json"} <= set(os.listdir(tiny_run))


def test_evaluation_writes_every_promised_key(msf, tiny_run, tmp_path):
    file = tmp_path / "m.json"
    code, out, _ = msf("evaluate", "--checkpoint", tiny_run, "--split", "test", "--n-samples", 3, "--json", file)
    metrics = json.loads(file.read_text())
    assert code == 0
    assert metrics.keys() >= EVALUATION_KEYS
    assert (metrics["split"], metrics["n_images"], metrics["n_samples"]) == ("test", 20, 3)
    assert "accuracy" in out


def test_the_newest_run_is_used_where_no_checkpoint_is_named(msf, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = msf("evaluate")
    assert code == 2
    assert "msf train" in err
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(tiny_run)
    code, _, err = msf("evaluate", "--n-samples", 1)
    assert code == 0
    assert "runs/tiny" in err


def test_classification_writes_one_row_per_picture_and_refers_the_least_certain(msf, tiny_run, pictures, tmp_path):
    table, rows = tmp_path / "rows.csv", tmp_path / "rows.json"
    code, out, _ = msf("classify", pictures, "--checkpoint", tiny_run, "--refer", 0.4, "--csv", table, "--json", rows)
    assert code == 0
    assert "refer to a person" in out
    written = json.loads(rows.read_text())["rows"]
    assert [row["file"] for row in written] == [str(pictures / f"{number}.png") for number in range(5)]
    referred = [row["nearest_distance"] for row in written if row["is_referred"]]
    accepted = [row["nearest_distance"] for row in written if not row["is_referred"]]
    assert len(referred) == 2
    assert min(referred) >= max(accepted)
    with table.open() as lines:
        assert [row["label"] for row in csv.DictReader(lines)] == [str(row["label"]) for row in written]


def test_a_prediction_does_not_depend_on_the_other_pictures_of_the_call(msf, tiny_run, pictures, tmp_path):
    files = []
    for number, paths in enumerate(([pictures], [pictures / "3.png"])):
        files.append(tmp_path / f"{number}.json")
        msf("classify", *paths, "--checkpoint", tiny_run, "--micro-batch", 4, "--json", files[-1])
    together, alone = (json.loads(file.read_text())["rows"] for file in files)
    assert {**together[3], "index": 0} == alone[0]


def test_broken_pictures_are_named_and_the_others_classified(msf, tiny_run, pictures, tmp_path):
    (pictures / "1.png").write_text("not a picture")
    table, rows = tmp_path / "rows.csv", tmp_path / "rows.json"
    code, out, err = msf("classify", pictures, "--checkpoint", tiny_run, "--csv", table, "--json", rows)
    assert code == 1
    assert "not classified" in err
    assert "1.png" in err
    assert "4.png" in out
    written = json.loads(rows.read_text())["rows"]
    assert [row.get("label") is None for row in written] == [False, True, False, False, False]
    assert [row["error"] is None for row in written] == [True, False, True, True, True]
    with table.open() as lines:
        assert [bool(row["error"]) for row in csv.DictReader(lines)] == [False, True, False, False, False]


def test_pictures_are_classified_alike_however_they_are_cut_into_parts(msf, tiny_run, pictures, tmp_path, monkeypatch):
    from msf.cli import classify

    files = [tmp_path / "whole.json", tmp_path / "parts.json"]
    msf("classify", pictures, "--checkpoint", tiny_run, "--micro-batch", 4, "--json", files[0])
    monkeypatch.setattr(classify, "_PART_BYTES", 2 * 4 * 3 * 8 * 8)
    code, _, _ = msf("classify", pictures, "--checkpoint", tiny_run, "--micro-batch", 4, "--json", files[1])
    assert code == 0
    assert files[0].read_text() == files[1].read_text()


@pytest.mark.parametrize(("size", "pixels"), [("20", 20), ("original", 28)])
def test_generated_pictures_have_the_wanted_size(msf, tiny_run, tmp_path, size, pixels):
    arguments = ("--checkpoint", tiny_run, "--labels", "1", "--n", 1, "--n-steps", 1, "--out", tmp_path)
    code, _, _ = msf("generate", *arguments, "--size", size)
    assert code == 0
    with Image.open(tmp_path / "01-0000.png") as picture:
        assert picture.size == (pixels, pixels)


def test_generation_writes_pictures_and_a_grid(msf, tiny_run, tmp_path):
    out = tmp_path / "generated"
    code, _, _ = msf("generate", "--checkpoint", tiny_run, "--labels", "1,3", "--n", 2, "--n-steps", 2, "--out", out)
    assert code == 0
    pictures = ["01-0000.png", "01-0001.png", "03-0000.png", "03-0001.png"]
    assert sorted(os.listdir(out)) == [*pictures, "generated.json", "overview"]
    assert os.listdir(out / "overview") == ["grid.png"]
    with Image.open(out / "01-0000.png") as picture:
        assert (picture.size, picture.mode) == ((8, 8), "RGB")


def test_info_names_backends_and_describes_a_checkpoint(msf, tiny_run, tmp_path):
    file = tmp_path / "info.json"
    code, out, _ = msf("info", "--checkpoint", tiny_run, "--json", file)
    report = json.loads(file.read_text())
    assert code == 0
    assert report["backends"]["class_distance"]["reference"] == []
    assert report["checkpoint"]["task"]["n_classes"] == 5
    assert "spatial_attention" in out


@pytest.fixture
def small_demo(monkeypatch, tiny_npz):
    from msf.cli import demo
    from msf.config import RECIPES, DataConfig, UNetConfig

    recipe = RECIPES["demo"]
    small = recipe.__class__.from_dict(
        {
            **recipe.to_dict(),
            "data": {"dataset": str(tiny_npz), "image_size": 8},
            "network": {
                "base_channels": 32,
                "channel_multipliers": [1],
                "n_res_blocks": 1,
                "attention_down_rates": [],
                "head_channels": 32,
            },
        }
    )
    assert isinstance(small.data, DataConfig)
    assert isinstance(small.network, UNetConfig)
    monkeypatch.setitem(demo.RECIPES, "demo", small)


def test_the_demo_writes_page_numbers_and_pictures(msf, tmp_path, small_demo):
    out = tmp_path / "demo"
    code, printed, err = msf("demo", "--out", out, "--epochs", 1, "--device", "cpu")
    assert code == 0
    assert {"report.html", "summary.md", "metrics.json", "generated.png", "certainty.png", "risk_coverage.png"} <= set(
        os.listdir(out)
    )
    page = (out / "summary.md").read_text()
    assert "synthetic" in page
    assert "predictive_entropy" in page
    assert "accuracy" in printed
    assert json.loads((out / "metrics.json").read_text()).keys() >= {"accuracy", "bayes_accuracy_bound", "scores"}


@pytest.mark.parametrize("error", [Interrupted(signal.SIGTERM), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.usefixtures("small_demo")
def test_a_demo_that_ends_while_it_draws_names_what_is_kept_and_goes_on(msf, tmp_path, monkeypatch, error):
    from msf import report

    def ended(*_):
        raise error

    monkeypatch.setattr(report, "certainty_grid", ended)
    arguments = ["demo", "--out", tmp_path / "a demo", "--epochs", 1, "--device", "cpu"]
    code, _, err = msf(*arguments)
    assert code == (143 if isinstance(error, Interrupted) else 1)
    line = err.splitlines()[-1]
    assert f"the trained network is in '{tmp_path / 'a demo' / 'network'}'; go on with: msf demo --out" in line
    monkeypatch.undo()
    assert line.endswith(f"go on with: {shlex.join(['msf', *map(str, arguments)])}")


def test_the_best_epoch_is_printed_as_progress_counts_and_written_as_the_history_does(msf, tiny_npz, tmp_path):
    flags = {"dataset": tiny_npz, "out": tmp_path / "run", **TINY, "json": tmp_path / "t.json"}
    code, out, err = msf("train", *(f"--{name}={value}" for name, value in flags.items()))
    assert code == 0
    assert "epoch 1 of 1," in err
    assert re.search(r"best_epoch +1 of 1\n", out)
    content = json.loads((tmp_path / "t.json").read_text())
    assert content["best_epoch"] == content["history"][0]["epoch"] == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P", "I;16"])
def test_pictures_of_any_mode_and_shape_are_read(msf, tiny_run, tmp_path, mode):
    values = np.arange(400, dtype=np.uint16).reshape(16, 25)
    picture = (
        Image.fromarray(values * 160) if mode == "I;16" else Image.fromarray(values.astype(np.uint8)).convert(mode)
    )
    file = tmp_path / "picture.png"
    picture.save(file)
    code, out, _ = msf("classify", file, "--checkpoint", tiny_run)
    assert code == 0
    assert "picture.png" in out


def test_help_of_the_whole_and_of_every_command_ends_well(msf):
    commands = ["demo", "train", "evaluate", "report", "classify", "generate", "import-official", "info"]
    code, out, _ = msf("--help")
    assert code == 0
    assert all(command in out for command in commands)
    for command in commands:
        code, out, _ = msf(command, "--help")
        assert code == 0
        assert all(flag in out for flag in ("--seed", "--device", "--json"))


def test_help_does_not_import_torch():
    script = (
        "import sys; sys.argv = ['msf', '--help']\nfrom msf.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    script += "assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
