"""Cycles of the learning rate, runs that are extended, epochs that are validated."""

import csv
import dataclasses
import json

import pytest
import torch

from msf.checkpoints.folder import load_checkpoint
from msf.config import ClassifySettings, TrainConfig
from msf.training import train as train_module
from msf.training.folder import EPOCHS_FOLDER, METRICS_FILE
from msf.training.schedule import Schedule, one_cycle, validation_interval
from msf.training.train import HISTORY_FILE, STATE_FILE, train
from msf.training.validation import PREVIEWS_FOLDER
from tests.msf.training.tiny import EPOCHS, STEPS_PER_EPOCH, Interrupted, interrupt_at, tiny_dataset, tiny_experiment


def test_every_extension_has_a_cycle_of_its_own():
    settings = TrainConfig(epochs=4, extensions=(2, 3), warmup_share=0.25, batch_size=8)
    schedule = Schedule(settings, 77)
    assert (schedule.cycle_ends, schedule.n_epochs, schedule.n_steps) == ([4, 6, 9], 9, 90)
    for start, length in ((0, 40), (40, 20), (60, 30)):
        rates = [schedule.learning_rate(step) for step in range(start, start + length)]
        assert rates == [one_cycle(step, length, settings) for step in range(length)]
        assert rates[0] == rates[-1] == pytest.approx(settings.min_learning_rate)


def test_a_run_that_has_ended_is_extended_and_the_extension_resumes_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 1)
    data = tiny_dataset()
    before = {}
    for name in ("whole", "broken"):
        before[name] = train(tiny_experiment(checkpoint_seconds=0.0), data, tmp_path / name, device="cpu").history
    extended = tiny_experiment(checkpoint_seconds=0.0, extensions=(2,))
    whole = train(extended, data, tmp_path / "whole", device="cpu")
    assert len(whole.history) == EPOCHS + 2
    assert whole.history[:EPOCHS] == before["whole"]
    assert torch.load(tmp_path / "whole" / STATE_FILE, weights_only=True)["position"]["step"] == 5 * STEPS_PER_EPOCH
    callback = interrupt_at(EPOCHS * STEPS_PER_EPOCH + 2)
    with pytest.raises(Interrupted):
        train(extended, data, tmp_path / "broken", device="cpu", progress=callback)
    assert train(extended, data, tmp_path / "broken", device="cpu", resume=True).history == whole.history
    again = dataclasses.replace(extended, train=dataclasses.replace(extended.train, extensions=(2, 1)))
    assert len(train(again, data, tmp_path / "whole", device="cpu").history) == EPOCHS + 3
    with pytest.raises(ValueError, match=r"train\.extensions was \[2, 1\], now \[2\]"):
        train(extended, data, tmp_path / "whole", device="cpu")


def test_what_has_not_ended_is_not_extended(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 1)
    extended = tiny_experiment(checkpoint_seconds=0.0, extensions=(2,))
    with pytest.raises(ValueError, match="extend goes on from a run that has ended; folder .* holds none"):
        train(extended, tiny_dataset(), tmp_path, device="cpu")
    with pytest.raises(Interrupted):
        train(tiny_experiment(checkpoint_seconds=0.0), tiny_dataset(), tmp_path, device="cpu", progress=interrupt_at(4))
    with pytest.raises(ValueError, match="is in epoch 2 of 3: finish it with --resume"):
        train(extended, tiny_dataset(), tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("n_train", "n_val", "given", "inference", "expected"),
    [
        (3000, 400, None, ClassifySettings(), 1),
        (1000, 1000, None, ClassifySettings(), 7),  # 2 draws of 1 evaluation against 3: 2/3 of the time
        (1000, 150, None, ClassifySettings(n_steps=4, method="heun"), 8),  # 2 x 8 x 0.15 / 3 = 0.8
        (1000, 1000, 2, ClassifySettings(), 2),
    ],
)
def test_validation_costs_at_most_a_tenth_of_the_evaluations(n_train, n_val, given, inference, expected):
    assert validation_interval(TrainConfig(validate_every=given), inference, n_train, n_val) == expected


def test_epochs_that_are_not_validated_have_no_figures_and_the_last_one_is(tmp_path):
    every, second = (
        train(tiny_experiment(validate_every=k), tiny_dataset(), tmp_path / str(k), device="cpu") for k in (1, 2)
    )
    assert [row["accuracy"] is None for row in second.history] == [True, False, False]
    assert second.history[1:] == every.history[1:]
    assert second.best_value == max(row["auc_macro_ovr"] for row in second.history[1:])
    with (tmp_path / "2" / METRICS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["accuracy"] == "" for row in rows] == [True, False, False]
    assert [float(row["image_loss"]) for row in rows] == [row["image_loss"] for row in second.history]


def test_the_terms_of_the_loss_add_up(tmp_path):
    seen = []
    result = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", progress=seen.append)
    for row in result.history:
        assert row["train_loss"] == pytest.approx(0.7 * row["image_loss"] + 0.3 * row["semantic_loss"])
    assert seen[0].image_loss == pytest.approx(result.history[0]["image_loss"])
    assert seen[0].images_per_second > 0


def test_the_last_networks_are_kept_and_the_older_ones_go(tmp_path):
    train(tiny_experiment(keep_last=2), tiny_dataset(), tmp_path, device="cpu")
    folders = sorted((tmp_path / EPOCHS_FOLDER).iterdir())
    assert [folder.name for folder in folders] == ["00002", "00003"]
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    last = load_checkpoint(folders[-1]).state_dict
    assert all(torch.equal(state["average"][f"module.{name}"], tensor) for name, tensor in last.items())


def test_previews_are_drawn_and_change_nothing(tmp_path):
    plain = train(tiny_experiment(), tiny_dataset(), tmp_path / "plain", device="cpu")
    drawn = train(tiny_experiment(preview_every=2), tiny_dataset(), tmp_path / "drawn", device="cpu")
    assert drawn.history == plain.history
    files = sorted(path.name for path in (tmp_path / "drawn" / PREVIEWS_FOLDER).iterdir())
    assert files == ["epoch-00002-curve.png", "epoch-00002-samples.png"]


def test_a_history_that_a_kill_left_behind_is_written_when_the_run_goes_on(tmp_path):
    history = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu").history
    (tmp_path / HISTORY_FILE).write_text("[]")
    (tmp_path / METRICS_FILE).unlink()
    train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", resume=True)
    assert json.loads((tmp_path / HISTORY_FILE).read_text()) == history
    assert len((tmp_path / METRICS_FILE).read_text().splitlines()) == 1 + EPOCHS


def test_a_state_of_before_the_terms_were_kept_goes_on_where_an_epoch_has_ended(tmp_path):
    first = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    for name in ("epoch_image_loss", "epoch_semantic_loss"):
        del state["position"][name]
    torch.save(state, tmp_path / STATE_FILE)
    assert train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", resume=True).history == first.history
