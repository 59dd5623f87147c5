"""A signal at any moment of a training: the state is saved, and the run that goes on gives the same bits."""

import errno
import itertools
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch

from msf.checkpoints.folder import load_checkpoint
from msf.config import CodeConfig, DataConfig, ExperimentConfig, PathConfig, TrainConfig, UNetConfig
from msf.data import ImageDataset, Split, make_phantoms
from msf.interruption import Interrupted, interruptible
from msf.medsymmflow import MedSymmFlow
from msf.training import step as step_module
from msf.training import train as train_module
from msf.training.schedule import Schedule
from msf.training.train import STATE_FILE, train

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent as POSIX sends them")

EPOCHS = 2
STEPS_PER_EPOCH = 3

EXPERIMENT = ExperimentConfig(
    data=DataConfig(image_size=8),
    code=CodeConfig(name="simplex"),
    path=PathConfig(end_share=0.5),
    network=UNetConfig(
        base_channels=32, channel_multipliers=(1,), n_res_blocks=1, attention_down_rates=(), head_channels=32,
        dropout=0.1,
    ),
    train=TrainConfig(epochs=EPOCHS, batch_size=16, validation_samples=1, validate_every=1, precision="fp32"),
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset():
    arrays = make_phantoms(0, {"train": 40, "val": 20})
    splits = {
        name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"].flatten().long()) for name in ("train", "val")
    }
    return ImageDataset(
        name="tiny", test=None, class_names=tuple("abcde"), flips=True, is_ordinal=False, licence="", citation="",
        fingerprint="tiny", **splits,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return train(EXPERIMENT, dataset, folder, device="cpu").history, load_checkpoint(folder).state_dict


def same_as(uninterrupted, result):
    history, weights = uninterrupted
    found = load_checkpoint(result.folder).state_dict
    return result.history == history and all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def interrupt_call(monkeypatch, target, name, call, number=signal.SIGTERM, *, n_signals=1):
    """Send signals when a function is called for the `call`-th time, counted from 1, just before it runs."""
    original, counter = getattr(target, name), itertools.count(1)

    def wrapped(*arguments, **keywords):
        if next(counter) == call:
            for _ in range(n_signals):
                os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    monkeypatch.setattr(target, name, wrapped)


def train_interrupted(dataset, folder):
    with pytest.raises(Interrupted) as caught, interruptible():
        train(EXPERIMENT, dataset, folder, device="cpu", resume=True)
    return caught.value


# What is interrupted, at which call of it, and the step that is then saved.
MOMENTS = {
    "building the network": (train_module, "weight_average", 1, None),
    "preparing pictures": (train_module.TrainingImages, "batch", 2, 1),
    "in the forward pass": (step_module, "symmetric_path", 3, 2),
    "after the gradients": (Schedule, "learning_rate", 2, 1),
    "in the optimiser": (torch.optim.AdamW, "step", 2, 2),
    "in the average": (torch.optim.swa_utils.AveragedModel, "update_parameters", 4, 4),
    "reading the loss": (train_module.TrainingRun, "_mean_terms", 1, 3),
    "before validation": (train_module.TrainingRun, "_finish_epoch", 1, 3),
    "in validation": (MedSymmFlow, "classify", 1, 3),
    "saving the checkpoint": (MedSymmFlow, "save_pretrained", 1, 3),
    "changing places after validation": (train_module, "replace", 1, 3),
    "saving the state": (train_module.TrainingRun, "_save_state", 1, 3),
    "writing a file": (Path, "write_bytes", 2, 3),
    "flushing a file": (os, "fsync", 3, 3),
    "renaming a file": (os, "replace", 3, 3),
    "the last validation": (MedSymmFlow, "classify", 2, 6),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_saves_and_the_run_goes_on_with_the_same_bits(
    dataset, uninterrupted, tmp_path, monkeypatch, moment
):
    target, name, call, step = MOMENTS[moment]
    with monkeypatch.context() as patch:
        interrupt_call(patch, target, name, call)
        error = train_interrupted(dataset, tmp_path / "run")
    if step is None:
        assert not (tmp_path / "run").exists()
    else:
        assert f"{STATE_FILE}' keeps the training up to step {step} of 6" in error.__notes__[-1]
        assert torch.load(tmp_path / "run" / STATE_FILE, weights_only=True)["position"]["step"] == step
        assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    result = train(EXPERIMENT, dataset, tmp_path / "run", device="cpu", resume=True)
    assert same_as(uninterrupted, result)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_that_come_twice_while_saving_corrupt_nothing(dataset, uninterrupted, tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        interrupt_call(patch, step_module, "symmetric_path", 2)
        interrupt_call(patch, os, "fsync", 1, number, n_signals=2)
        interrupt_call(patch, os, "replace", 1, number, n_signals=2)
        error = train_interrupted(dataset, tmp_path)
    assert error.number == signal.SIGTERM
    assert "up to step 1 of 6" in error.__notes__[-1]
    assert same_as(uninterrupted, train(EXPERIMENT, dataset, tmp_path, device="cpu", resume=True))


def test_ctrl_c_in_a_library_saves_where_weights_and_position_belong_together(
    dataset, uninterrupted, tmp_path, monkeypatch
):
    for target, name, step in ((step_module, "symmetric_path", 1), (torch.optim.AdamW, "step", 1)):
        with monkeypatch.context() as patch:
            interrupt_call(patch, target, name, 2 if step else 1, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt) as caught:
                train(EXPERIMENT, dataset, tmp_path, device="cpu", resume=True)
        # The second comes in the middle of a step, whose weights nothing belongs to: the state before it stays.
        assert "keeps the training up to step 1 of 6" in caught.value.__notes__[-1]
        assert torch.load(tmp_path / STATE_FILE, weights_only=True)["position"]["step"] == step
    assert same_as(uninterrupted, train(EXPERIMENT, dataset, tmp_path, device="cpu", resume=True))


def run_with_signal(dataset, folder, at_call):
    """Train, and get a signal at that call of a Python function; return the number of calls, -1 if interrupted."""
    calls = itertools.count()

    def count(_frame, event, _argument):
        if event == "call" and next(calls) == at_call:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with interruptible():
            sys.setprofile(count)
            train(EXPERIMENT, dataset, folder, device="cpu", resume=True)
    except Interrupted:
        return -1
    finally:
        sys.setprofile(None)
    return next(calls)


@pytest.mark.slow
def test_signals_at_random_moments(dataset, uninterrupted, tmp_path):
    n_calls = run_with_signal(dataset, tmp_path / "whole", at_call=-1)
    moments = random.Random(0)
    for number in range(6):
        folder = tmp_path / str(number)
        assert run_with_signal(dataset, folder, at_call=moments.randrange(n_calls * 9 // 10)) == -1
        assert same_as(uninterrupted, train(EXPERIMENT, dataset, folder, device="cpu", resume=True))


def full_disk(monkeypatch, target, name, first_call):
    """Let a function fail as on a full disk, from some call on."""
    original, counter = getattr(target, name), itertools.count(1)

    def wrapped(*arguments, **keywords):
        if next(counter) >= first_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **keywords)

    monkeypatch.setattr(target, name, wrapped)


@pytest.mark.parametrize(
    ("target", "name", "first_call", "kept"),
    [
        # Weights, then the state, of one epoch after the other.
        (Path, "write_bytes", 1, "nothing of the training is saved"),
        (Path, "write_bytes", 2, "nothing of the training is saved"),
        (Path, "write_bytes", 3, "up to step 3 of 6, model.safetensors beside it the best epoch so far"),
        (Path, "write_text", 2, "up to step 3 of 6, model.safetensors beside it the best epoch so far"),
        (os, "fsync", 1, "nothing of the training is saved"),
        (os, "replace", 4, "up to step 3 of 6, model.safetensors beside it the best epoch so far"),
    ],
)
def test_a_full_disk_tells_what_is_kept_and_the_run_goes_on(
    dataset, uninterrupted, tmp_path, monkeypatch, target, name, first_call, kept
):
    with monkeypatch.context() as patch:
        full_disk(patch, target, name, first_call)
        with pytest.raises(OSError, match="No space left on device: '.*'") as caught:
            train(EXPERIMENT, dataset, tmp_path / "run", device="cpu")
    assert caught.value.errno == errno.ENOSPC
    assert len(caught.value.__notes__) == 1
    assert caught.value.__notes__[0].endswith(kept)
    result = train(EXPERIMENT, dataset, tmp_path / "run", device="cpu", resume=True)
    assert same_as(uninterrupted, result)


def test_a_full_disk_while_an_interrupted_run_is_saved(dataset, uninterrupted, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_call(patch, step_module, "symmetric_path", 5)
        full_disk(patch, Path, "write_bytes", 3)
        error = train_interrupted(dataset, tmp_path)
    assert error.exit_code == 143
    assert "step 4 could not be saved ([Errno 28] No space left on device" in error.__notes__[0]
    assert "up to step 3 of 6" in error.__notes__[1]
    assert same_as(uninterrupted, train(EXPERIMENT, dataset, tmp_path, device="cpu", resume=True))
