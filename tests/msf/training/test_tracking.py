"""Metrics go to TensorBoard and its like where they are installed, and a missing one is named before the work."""

import pytest

from msf.training import tracking
from msf.training import train as train_module
from msf.training.train import train
from tests.msf.training.tiny import EPOCHS, STEPS_PER_EPOCH, tiny_dataset, tiny_experiment


def installed(monkeypatch, *names):
    monkeypatch.setattr(tracking, "_is_installed", lambda name: name in names)


def test_tensorboard_is_the_default_where_it_is_installed(monkeypatch):
    installed(monkeypatch)
    assert tracking.tracker_names(None) == []
    installed(monkeypatch, "tensorboard", "trackio")
    assert tracking.tracker_names(None) == ["tensorboard"]
    assert tracking.tracker_names("none") == []
    assert tracking.tracker_names("trackio, tensorboard,trackio") == ["trackio", "tensorboard"]


def test_an_unknown_tracker_and_one_that_is_missing_are_named(monkeypatch):
    installed(monkeypatch, "tensorboard")
    with pytest.raises(ValueError, match="track must be none, or among tensorboard, wandb, trackio"):
        tracking.tracker_names("mlflow")
    with pytest.raises(ValueError, match=r"pip install 'medsymmflow\[wandb\]'"):
        tracking.tracker_names("tensorboard,wandb")


class Recorder:
    def __init__(self):
        self.logged, self.is_finished = [], False

    def log(self, figures, step):
        self.logged.append((step, figures))

    def finish(self):
        self.is_finished = True


def test_a_tracker_gets_losses_and_figures_and_is_closed(monkeypatch, tmp_path):
    recorder = Recorder()
    monkeypatch.setattr(train_module, "REPORT_EVERY", 1)
    monkeypatch.setattr(train_module, "make_trackers", lambda *_: [recorder])
    result = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    losses = [
        step for step, figures in recorder.logged if set(figures) == {"train_loss", "image_loss", "semantic_loss"}
    ]
    assert losses == list(range(1, EPOCHS * STEPS_PER_EPOCH + 1))
    assert [figures for _, figures in recorder.logged if "accuracy" in figures] == result.history
    assert recorder.is_finished


def test_events_of_tensorboard_lie_in_the_folder_of_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(tiny_experiment(track="tensorboard"), tiny_dataset(), tmp_path, device="cpu")
    events = EventAccumulator(str(tmp_path / tracking.EVENTS_FOLDER)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("accuracy")]
    expected = [((k + 1) * STEPS_PER_EPOCH, row["accuracy"]) for k, row in enumerate(result.history)]
    assert found == pytest.approx(expected)
