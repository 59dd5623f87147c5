"""Training an autoencoder on one's own pictures."""

import json

import pytest
import torch

from msf.autoencoder import KLAutoencoder
from msf.autoencoder.kl import CONFIG_FILE, WEIGHTS_FILE
from msf.autoencoder.train import AutoencoderTraining, train_autoencoder
from msf.data import ImageDataset, Split, load_dataset, make_phantoms

TINY = {
    "image_size": 16,
    "block_channels": (16, 16),
    "batch_size": 8,
    "use_bf16": False,
    "learning_rate": 4e-3,
    "colour_steps": 5,
}


@pytest.fixture(scope="module")
def dataset():
    arrays = make_phantoms(0, {"train": 32, "val": 10, "test": 10})
    splits = {
        name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"][:, 0].long())
        for name in ("train", "val", "test")
    }
    names = ("a", "b")
    return ImageDataset(
        "tiny", **splits, class_names=names, flips=False, is_ordinal=False, licence="", citation="", fingerprint=""
    )


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "autoencoder"
    return train_autoencoder(dataset, folder, AutoencoderTraining(epochs=30, **TINY), device="cpu")


def test_the_loss_falls(trained):
    losses = [entry["train_loss"] for entry in trained.history]
    assert [entry["epoch"] for entry in trained.history] == list(range(30))
    assert losses[-1] < 0.6 * losses[0]


def test_reconstructions_beat_the_mean_picture(trained, dataset):
    pictures, decoded = trained.reconstruct(dataset.val.images)
    of_the_mean = 10 * torch.log10(1 / (pictures - pictures.mean(0)).square().flatten(1).mean(1)).mean()
    assert trained.val_psnr > of_the_mean + 2
    assert pictures.shape == decoded.shape == (10, 3, 16, 16)
    assert 0 <= decoded.min() <= decoded.max() <= 1
    mean_error = (decoded - pictures).square().flatten(1).mean(1)
    assert float((10 * torch.log10(1 / mean_error)).mean()) == pytest.approx(trained.val_psnr, abs=1e-3)


def test_the_folder_holds_the_autoencoder_that_came_back(trained, dataset):
    read = KLAutoencoder.from_pretrained(trained.folder)
    assert read.fingerprint == trained.autoencoder.fingerprint
    assert sorted(path.name for path in trained.folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert (read.latent_channels, read.down_factor) == (4, 2)


def test_latents_of_the_training_pictures_have_unit_deviation(trained, dataset):
    from msf.data import prepare_images

    latents = trained.autoencoder.encode(prepare_images(dataset.train.images, 16, 3)).mean
    assert float(latents.std()) == pytest.approx(1, rel=1e-4)
    stored = json.loads((trained.folder / CONFIG_FILE).read_text())["scaling_factor"]
    assert stored == trained.autoencoder.scaling_factor != 0.18215


def test_a_run_repeats_itself_and_follows_its_seed(dataset, tmp_path):
    def fingerprint(name, seed):
        settings = AutoencoderTraining(epochs=1, seed=seed, **TINY)
        return train_autoencoder(dataset, tmp_path / name, settings, device="cpu").autoencoder.fingerprint

    assert fingerprint("a", 0) == fingerprint("b", 0) != fingerprint("c", 1)


def test_the_callers_random_state_is_left_alone(dataset, tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train_autoencoder(dataset, tmp_path / "a", AutoencoderTraining(epochs=1, **TINY), device="cpu")
    assert torch.equal(torch.rand(3), wanted)


def test_the_steps_on_mosaics_teach_colours(dataset, tmp_path):
    colours = torch.tensor([[-1.0, -1, -1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])[:, :, None, None]
    colours = 0.8 * colours.expand(-1, -1, 16, 16)
    few = {**TINY, "n_groups": 2, "learning_rate": 1e-5, "kl_weight": 1e-4, "epochs": 1}
    errors = []
    for steps in (0, 250):
        settings = AutoencoderTraining(**{**few, "colour_steps": steps})
        autoencoder = train_autoencoder(dataset, tmp_path / str(steps), settings, device="cpu").autoencoder
        errors.append(float((autoencoder.decode(autoencoder.encode(colours).mean) - colours).abs().mean()))
    assert errors[1] < 0.75 * errors[0]


def test_progress_counts_to_the_end(dataset, tmp_path):
    seen = []
    settings = AutoencoderTraining(epochs=3, **TINY)
    train_autoencoder(dataset, tmp_path / "a", settings, device="cpu", progress=seen.append)
    # Every ten steps, and at the end of every epoch.
    told = [(p.step, p.n_steps, p.n_epochs) for p in seen if p.stage == "pictures"]
    assert told == [(4, 12, 1), (8, 12, 2), (10, 12, 2), (12, 12, 3)]
    assert [p.step for p in seen if p.stage == "figures"] == [8, 16, 24, 32, 40, 42]
    assert all(p.loss > 0 for p in seen)


def test_progress_tells_of_the_colours_too(dataset, tmp_path):
    seen = []
    settings = AutoencoderTraining(epochs=1, **{**TINY, "colour_steps": 25})
    train_autoencoder(dataset, tmp_path / "a", settings, device="cpu", progress=seen.append)
    assert [(p.step, p.n_steps) for p in seen if p.stage == "colours"] == [(10, 25), (20, 25)]


def test_bfloat16_trains_too(dataset, tmp_path):
    settings = AutoencoderTraining(epochs=2, **{**TINY, "use_bf16": True})
    result = train_autoencoder(dataset, tmp_path / "a", settings, device="cpu")
    assert result.history[1]["train_loss"] < result.history[0]["train_loss"]


def test_an_autoencoder_is_not_overwritten(trained, dataset):
    before = (trained.folder / WEIGHTS_FILE).read_bytes()
    with pytest.raises(ValueError, match="holds an autoencoder already"):
        train_autoencoder(dataset, trained.folder, AutoencoderTraining(epochs=1, **TINY), device="cpu")
    assert (trained.folder / WEIGHTS_FILE).read_bytes() == before


def test_a_diverged_training_writes_nothing(dataset, tmp_path):
    settings = AutoencoderTraining(epochs=2, **{**TINY, "learning_rate": 1e12})
    with pytest.raises(FloatingPointError, match="training loss is .* lower learning_rate"):
        train_autoencoder(dataset, tmp_path / "a", settings, device="cpu")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"image_size": 30}, "height must be a positive multiple of 4, such as 28 or 32; got 30"),
        ({"block_channels": (10, 16)}, "block_channels must be positive multiples of n_groups = 4"),
        ({"block_channels": ()}, "block_channels must be"),
        ({"epochs": 0}, "epochs must be >= 1"),
        ({"kl_weight": -1.0}, "kl_weight must be >= 0"),
        ({"plain_share": 1.0}, r"plain_share must be in \[0, 1\)"),
        ({"colour_steps": -1}, "colour_steps must be >= 0"),
        ({"seed": -1}, "seed must be >= 0"),
    ],
)
def test_settings_out_of_range_are_named(change, wanted):
    with pytest.raises(ValueError, match=wanted):
        AutoencoderTraining(**change)


# The command


@pytest.fixture
def msf(monkeypatch, capsys):
    """Run the command line in this process; returns exit code, standard output and standard error."""
    import sys

    from msf.cli import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["msf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    import numpy as np

    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(
        path, **{name: values.numpy() for name, values in make_phantoms(0, {"train": 16, "val": 5, "test": 4}).items()}
    )
    return path


def test_the_command_writes_the_folder_a_picture_and_json(msf, archive, tmp_path):
    folder = tmp_path / "new" / "autoencoder"
    code, out, err = msf(
        "train-autoencoder", "--dataset", archive, "--out", folder, "--image-size", 16, "--block-channels", "8,8",
        "--epochs", 1, "--batch-size", 8, "--colour-steps", 2, "--device", "cpu", "--json", tmp_path / "figures.json",
    )  # fmt: skip
    assert code == 0, err
    assert f"--autoencoder-source {folder}" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["fingerprint"] == KLAutoencoder.from_pretrained(folder).fingerprint
    assert figures["down_factor"] == 2
    assert len(figures["history"]) == 1
    assert (folder / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_takes_a_folder_of_pictures_and_hands_its_splits_on(msf, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("MSF_CACHE", str(tmp_path / "cache"))
    arrays = make_phantoms(0, {"train": 30, "val": 5, "test": 5})
    for number, (image, label) in enumerate(zip(arrays["train_images"], arrays["train_labels"], strict=True)):
        path = tmp_path / "cells" / f"kind {int(label)}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path)
    code, out, err = msf(
        "train-autoencoder", "--dataset", tmp_path / "cells", "--out", tmp_path / "a", "--image-size", 16, "--val", 0.2,
        "--test", 0.2, "--block-channels", "8,8", "--epochs", 1, "--batch-size", 8, "--colour-steps", 2, "--device",
        "cpu",
    )  # fmt: skip
    assert code == 0, err
    (packed,) = (tmp_path / "cache" / "packed").glob("cells-*.npz")
    assert f"--dataset {packed} " in out
    dataset = load_dataset(packed)
    assert (dataset.image_size, dataset.n_classes) == (16, 5)
    assert sum(len(dataset.split(name)) for name in ("train", "val", "test")) == 30
    assert KLAutoencoder.from_pretrained(tmp_path / "a").down_factor == 2


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--image-size", "30"], "multiple of 4"),
        (["--block-channels", "8,x"], "block_channels must be whole numbers"),
        (["--epochs", "0"], "epochs must be >= 1"),
    ],
)
def test_bad_flags_are_one_line(msf, archive, tmp_path, flags, word):
    code, _, err = msf("train-autoencoder", "--dataset", archive, "--out", tmp_path / "a", *flags)
    assert code == 2
    assert word in err
    assert "Traceback" not in err
    assert not (tmp_path / "a").exists()


def test_the_help_states_the_defaults(msf):
    """The command does not import torch for its help, so that it repeats them as text."""
    import dataclasses
    import inspect
    import typing

    from msf.cli.train_autoencoder import train_autoencoder as command

    hints = typing.get_type_hints(command, include_extras=True)
    defaults = {field.name: field.default for field in dataclasses.fields(AutoencoderTraining)}
    told = 0
    for name in inspect.signature(command).parameters:
        option = next((part for part in getattr(hints[name], "__metadata__", ()) if hasattr(part, "help")), None)
        if name in defaults and name != "seed":
            text = option.help.rpartition("Default: ")[2].rstrip(".")
            value = defaults[name]
            wanted = ",".join(map(str, value)) if isinstance(value, tuple) else value
            assert (text == wanted) if isinstance(wanted, str) else (float(text) == wanted)
            told += 1
    assert told == 10
