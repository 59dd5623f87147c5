"""An autoencoder's training that is interrupted, killed or out of disk goes on with the same bits."""

import errno
import itertools
import os
import signal
from pathlib import Path

import pytest
import torch

from msf.autoencoder import KLAutoencoder
from msf.autoencoder import train as train_module
from msf.autoencoder import training_run as run_module
from msf.autoencoder.kl import CONFIG_FILE, WEIGHTS_FILE
from msf.autoencoder.train import AutoencoderTraining, train_autoencoder
from msf.data import ImageDataset, Split, make_phantoms
from msf.files.state import STATE_FILE
from msf.interruption import Interrupted, interruptible

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX sends them")

COLOUR_STEPS, N_STEPS = 3, 6
SETTINGS = AutoencoderTraining(
    image_size=8, block_channels=(8, 8), batch_size=8, use_bf16=False, colour_steps=COLOUR_STEPS, epochs=2
)


@pytest.fixture(scope="module")
def dataset():
    arrays = make_phantoms(0, {"train": 24, "val": 5})
    splits = {name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"][:, 0].long()) for name in ("train", "val")}
    return ImageDataset(
        "tiny", **splits, test=None, class_names=("a", "b"), flips=False, is_ordinal=False, licence="", citation="",
        fingerprint="tiny",
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory):
    result = train_autoencoder(dataset, tmp_path_factory.mktemp("whole"), SETTINGS, device="cpu")
    return result.history, result.autoencoder.fingerprint, result.val_psnr


def figures(result):
    return result.history, result.autoencoder.fingerprint, result.val_psnr


def at_call(monkeypatch, target, name, call, act):
    original, counter = getattr(target, name), itertools.count(1)

    def wrapped(*arguments, **keywords):
        if next(counter) == call:
            act()
        return original(*arguments, **keywords)

    monkeypatch.setattr(target, name, wrapped)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


MOMENTS = {
    "building the model": (run_module, "_new_model", 1, None),
    "on colours": (run_module, "autoencoder_loss", 2, 1),
    "in the optimiser, on colours": (torch.optim.AdamW, "step", 2, 2),
    "preparing pictures": (run_module, "prepare_images", 2, COLOUR_STEPS + 1),
    "in the optimiser": (torch.optim.AdamW, "step", COLOUR_STEPS + 2, COLOUR_STEPS + 2),
    "after the last step of an epoch": (run_module.AutoencoderRun, "_finite", 1, COLOUR_STEPS + 3),
    "after the last step": (run_module.AutoencoderRun, "_finite", 4, COLOUR_STEPS + N_STEPS),
    "saving the state": (run_module.AutoencoderRun, "_save", 1, COLOUR_STEPS + N_STEPS),
    "judging": (train_module, "prepare_images", 4, COLOUR_STEPS + N_STEPS),
    "writing the autoencoder": (os, "replace", 3, COLOUR_STEPS + N_STEPS),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_saves_and_the_training_goes_on_with_the_same_bits(
    dataset, uninterrupted, tmp_path, monkeypatch, moment
):
    target, name, call, step = MOMENTS[moment]
    folder = tmp_path / "autoencoder"
    with monkeypatch.context() as patch:
        at_call(patch, target, name, call, terminate)
        with pytest.raises(Interrupted) as caught, interruptible():
            train_autoencoder(dataset, folder, SETTINGS, device="cpu")
    if step is None:
        assert not folder.exists()
    else:
        assert f"keeps the training up to step {step} of {COLOUR_STEPS + N_STEPS}" in caught.value.__notes__[-1]
        with pytest.raises(ValueError, match="holds a training run: resume it with --resume"):
            train_autoencoder(dataset, folder, SETTINGS, device="cpu")
    result = train_autoencoder(dataset, folder, SETTINGS, device="cpu", resume=True)
    assert figures(result) == uninterrupted
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert KLAutoencoder.from_pretrained(folder).fingerprint == uninterrupted[1]


@pytest.mark.parametrize(("call", "kept"), [(1, "nothing"), (6, f"up to step {COLOUR_STEPS + N_STEPS}")])
def test_a_full_disk_tells_what_is_kept(dataset, uninterrupted, tmp_path, monkeypatch, call, kept):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "SAVE_SECONDS", -1.0 if call > 1 else 60.0)
        # With a state after every epoch: two, the last one, and then the autoencoder.
        at_call(patch, Path, "write_bytes", 1 if call == 1 else 4, full)
        with pytest.raises(OSError, match="No space left on device: '.*'") as caught:
            train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu")
    assert kept in caught.value.__notes__[0]
    assert figures(train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu", resume=True)) == uninterrupted


def test_other_settings_and_other_data_are_refused(dataset, tmp_path, monkeypatch):
    from dataclasses import replace

    at_call(monkeypatch, run_module, "autoencoder_loss", 2, terminate)
    with pytest.raises(Interrupted), interruptible():
        train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"another configuration: kl_weight was 0\.0001, now 0\.1"):
        train_autoencoder(dataset, tmp_path, replace(SETTINGS, kl_weight=0.1), device="cpu", resume=True)
    other = replace(dataset, fingerprint="other")
    with pytest.raises(ValueError, match="on other data"):
        train_autoencoder(other, tmp_path, SETTINGS, device="cpu", resume=True)


def test_a_loss_that_is_not_a_number_keeps_the_state_from_before(dataset, uninterrupted, tmp_path, monkeypatch):
    original, counter = run_module.autoencoder_loss, itertools.count(1)

    def spoiled(*arguments, **keywords):
        loss = original(*arguments, **keywords)
        return loss * torch.nan if next(counter) == COLOUR_STEPS + 5 else loss

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "SAVE_SECONDS", -1.0)
        patch.setattr(run_module, "autoencoder_loss", spoiled)
        with pytest.raises(
            FloatingPointError, match="training loss is nan near step 9: start again.*learning_rate"
        ) as e:
            train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu")
    assert "up to step 6 of 9" in e.value.__notes__[0]
    assert STATE_FILE in os.listdir(tmp_path)
    assert figures(train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu", resume=True)) == uninterrupted


def test_the_folder_of_something_else_is_not_written_into(dataset, tmp_path):
    (tmp_path / CONFIG_FILE).write_text("{}")
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"holds the config\.json of something else"):
            train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu", resume=resume)
    assert os.listdir(tmp_path) == [CONFIG_FILE]


def test_a_second_training_in_the_folder_is_refused(dataset, tmp_path):
    def try_another(progress):
        with pytest.raises(ValueError, match="in use by another training"):
            train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu", resume=True)

    train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu", progress=try_another)
    with pytest.raises(ValueError, match="holds an autoencoder already"):
        train_autoencoder(dataset, tmp_path, SETTINGS, device="cpu", resume=True)
