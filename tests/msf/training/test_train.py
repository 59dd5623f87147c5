import dataclasses
import json
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from msf.checkpoints.folder import load_checkpoint
from msf.config import PathConfig
from msf.data import Split
from msf.training import processes
from msf.training import train as train_module
from msf.training.schedule import Schedule
from msf.training.train import HISTORY_FILE, STATE_FILE, train
from tests.msf.training.tiny import (
    EPOCHS,
    N_TRAIN,
    STEPS_PER_EPOCH,
    Interrupted,
    interrupt_at,
    tiny_dataset,
    tiny_experiment,
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = train(tiny_experiment(), tiny_dataset(), folder, device="cpu")
    return result, load_checkpoint(folder)[2]


def test_training_reduces_the_loss_and_keeps_the_best_epoch(uninterrupted):
    result, _ = uninterrupted
    losses = [epoch["train_loss"] for epoch in result.history]
    assert len(losses) == EPOCHS
    assert losses[-1] < losses[0]
    values = [epoch["auc_macro_ovr"] for epoch in result.history]
    assert result.best_value == max(values)
    assert result.best_epoch == values.index(max(values))
    assert json.loads((result.folder / HISTORY_FILE).read_text()) == result.history


@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2])
def test_a_run_that_was_interrupted_and_resumed_gives_the_same_bits(uninterrupted, tmp_path, monkeypatch, step):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 1)
    # A state after every report, so that the run goes on from the middle of an epoch too.
    experiment = tiny_experiment(checkpoint_seconds=0.0)
    with pytest.raises(Interrupted):
        train(experiment, tiny_dataset(), tmp_path, device="cpu", progress=interrupt_at(step))
    result = train(experiment, tiny_dataset(), tmp_path, device="cpu", resume=True)
    expected, expected_weights = uninterrupted
    assert result.history == expected.history
    weights = load_checkpoint(tmp_path)[2]
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected_weights.items())


def test_hidden_labels_are_the_same_after_a_resume_and_another_training(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 1)
    experiment = tiny_experiment(checkpoint_seconds=0.0, label_drop=0.4)
    whole = train(experiment, tiny_dataset(), tmp_path / "whole", device="cpu")
    assert whole.history != uninterrupted[0].history
    with pytest.raises(Interrupted):
        train(experiment, tiny_dataset(), tmp_path / "broken", device="cpu", progress=interrupt_at(2))
    assert train(experiment, tiny_dataset(), tmp_path / "broken", device="cpu", resume=True).history == whole.history


def test_a_run_of_steps_goes_on_to_the_end_of_their_epoch_and_tells_epochs_too(tmp_path):
    seen = []
    experiment = tiny_experiment(epochs=None, steps=2 * STEPS_PER_EPOCH - 1)
    result = train(experiment, tiny_dataset(), tmp_path, device="cpu", progress=seen.append)
    assert len(result.history) == 2
    assert {(p.n_steps, p.n_epochs) for p in seen} == {(2 * STEPS_PER_EPOCH, 2)}
    assert seen[-1].step == 2 * STEPS_PER_EPOCH


def test_steps_learn_what_as_many_epochs_learn(uninterrupted, tmp_path):
    experiment = tiny_experiment(epochs=None, steps=EPOCHS * STEPS_PER_EPOCH)
    assert train(experiment, tiny_dataset(), tmp_path, device="cpu").history == uninterrupted[0].history


RECOMMENDED = {
    "path": PathConfig(time_coupling="independent", end_share=0.5, time_sampling="cubic", loss_weighting="endpoint"),
    "code": "auto",
    "class_balanced": True,
    "label_drop": 0.2,
    "ema_decay": None,
    "ema_length": 0.1,
    "checkpoint_seconds": 0.0,
}


def test_every_choice_of_the_recommended_recipe_survives_an_interruption(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 1)
    experiment = tiny_experiment(**RECOMMENDED)
    whole = train(experiment, tiny_dataset(), tmp_path / "whole", device="cpu")
    with pytest.raises(Interrupted):
        train(experiment, tiny_dataset(), tmp_path / "broken", device="cpu", progress=interrupt_at(STEPS_PER_EPOCH + 1))
    result = train(experiment, tiny_dataset(), tmp_path / "broken", device="cpu", resume=True)
    assert result.history == whole.history
    weights = [load_checkpoint(tmp_path / name)[2] for name in ("whole", "broken")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(("is_ordinal", "code"), [(False, "simplex"), (True, "thermometer")])
def test_the_code_auto_is_stored_as_what_it_was(tmp_path, is_ordinal, code):
    dataset = dataclasses.replace(tiny_dataset(), is_ordinal=is_ordinal)
    train(tiny_experiment(code="auto", epochs=1), dataset, tmp_path, device="cpu")
    assert load_checkpoint(tmp_path).experiment.code.name == code


@pytest.mark.parametrize("change", ["path", "class_balanced"])
def test_loss_weighting_and_balance_change_what_is_learnt(uninterrupted, tmp_path, change):
    values = {"path": PathConfig(end_share=0.5, loss_weighting="endpoint"), "class_balanced": True}
    result = train(tiny_experiment(**{change: values[change]}), tiny_dataset(), tmp_path, device="cpu")
    assert result.history != uninterrupted[0].history


@pytest.mark.parametrize("selection", ["accuracy", "brier", "nll"])
def test_the_kept_epoch_is_the_best_by_the_figure_that_selects(tmp_path, selection):
    result = train(tiny_experiment(selection=selection), tiny_dataset(), tmp_path, device="cpu")
    values = [row[selection] for row in result.history]
    best = max(values) if selection == "accuracy" else min(values)
    assert (result.best_value, result.best_epoch) == (best, values.index(best))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    before = (tmp_path / "model.safetensors").read_bytes()
    again = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", resume=True)
    assert again.history == first.history
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_kill_in_the_middle_of_a_save_leaves_the_previous_state(tmp_path):
    # The second save dies with half of its bytes written.
    script = f"""
        import os, pathlib, signal, sys
        sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
        from tiny import tiny_dataset, tiny_experiment
        from msf.training.train import train

        write_bytes, n_saves = pathlib.Path.write_bytes, [0]

        def save_and_die(path, content):
            write_bytes(path, content)
            n_saves[0] += path.suffix == ".pt"
            if n_saves[0] == 2:
                os.truncate(path, os.path.getsize(path) // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        pathlib.Path.write_bytes = save_and_die
        train(tiny_experiment(), tiny_dataset(), {str(tmp_path)!r}, device="cpu")
    """
    finished = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert finished.returncode == -signal.SIGKILL
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert state["position"]["step"] == STEPS_PER_EPOCH
    result = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", resume=True)
    assert len(result.history) == EPOCHS


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    with pytest.raises(ValueError, match="holds a training run: resume it with --resume"):
        train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")


def test_a_checkpoint_without_a_run_is_not_overwritten_unless_that_is_allowed(tmp_path):
    train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    (tmp_path / STATE_FILE).unlink()
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds a checkpoint, which a training would replace"):
        train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert len(train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", resume=True).history) == EPOCHS


def test_a_folder_in_which_a_training_runs_is_refused(tmp_path):
    def try_another(progress):
        with pytest.raises(ValueError, match="in use by another training"):
            train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", resume=True)

    result = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", progress=try_another)
    assert len(result.history) == EPOCHS


def test_a_batch_larger_than_the_data_is_all_of_it_and_said(tmp_path, caplog):
    experiment = tiny_experiment()
    experiment = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, batch_size=N_TRAIN + 1))
    result = train(experiment, tiny_dataset(), tmp_path, device="cpu")
    assert len(result.history) == EPOCHS
    assert "batch_size is 41, but there are 40 pictures" in caplog.text


def test_progress_tells_of_the_validation_and_of_the_end_of_every_epoch(tmp_path):
    seen = []
    result = train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu", progress=seen.append)
    ends = [p for p in seen if p.validated == 1]
    assert [(p.step, p.epoch) for p in ends] == [(STEPS_PER_EPOCH * (k + 1), k) for k in range(EPOCHS)]
    assert [p.validation for p in ends] == result.history
    assert {p.epoch for p in seen if p.validated not in (None, 1)} == set(range(EPOCHS))
    assert seen[0].validated is None
    assert seen[0].loss == pytest.approx(result.history[0]["train_loss"])


def test_resuming_with_another_configuration_or_other_data_is_refused(tmp_path):
    train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    with pytest.raises(ValueError, match=r"train\.learning_rate was 0\.0004, now 0\.001"):
        train(tiny_experiment(learning_rate=1e-3), tiny_dataset(), tmp_path, device="cpu", resume=True)
    with pytest.raises(ValueError, match="other data"):
        train(tiny_experiment(), tiny_dataset(seed=1), tmp_path, device="cpu", resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "REPORT_EVERY", 1)
    step = train_module.TrainingRun.step
    monkeypatch.setattr(train_module.TrainingRun, "step", lambda run, rows: step(run, rows) * torch.nan)
    with pytest.raises(FloatingPointError, match="lower learning_rate") as caught:
        train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    assert caught.value.__notes__ == ["nothing of the training is saved"]


def test_weights_that_are_finite_and_give_no_finite_answers_are_a_divergence(tmp_path, monkeypatch):
    step = train_module.TrainingRun.step

    def spoiled(run, rows):
        loss = step(run, rows)
        for parameter in run.average.module.parameters():
            parameter.data.fill_(1e30)
        return loss

    monkeypatch.setattr(train_module.TrainingRun, "step", spoiled)
    with pytest.raises(FloatingPointError, match="must give finite values.*lower learning_rate"):
        train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")


@pytest.mark.parametrize("report_every", [1, 10])
def test_weights_that_are_not_finite_are_never_saved_and_what_was_before_stays(tmp_path, monkeypatch, report_every):
    """The loss of the step that spoils them is still a number."""
    monkeypatch.setattr(train_module, "REPORT_EVERY", report_every)
    experiment = tiny_experiment(checkpoint_seconds=0.0)
    step = train_module.TrainingRun.step

    def spoiled(run, rows):
        loss = step(run, rows)
        if run.position.step == 2 * STEPS_PER_EPOCH - 1:  # the last of the second epoch
            next(run.flow.network.parameters()).data.flatten()[0] = torch.nan
            run.average.update_parameters(run.flow.network)
        return loss

    monkeypatch.setattr(train_module.TrainingRun, "step", spoiled)
    with pytest.raises(
        FloatingPointError, match="not finite near step 6.*another folder.*lower learning_rate"
    ) as caught:
        train(experiment, tiny_dataset(), tmp_path, device="cpu")
    kept = 2 * STEPS_PER_EPOCH - 1 if report_every == 1 else STEPS_PER_EPOCH
    assert f"up to step {kept} of 9, model.safetensors beside it the best epoch" in caught.value.__notes__[0]
    state = torch.load(tmp_path / STATE_FILE, weights_only=True)
    assert state["position"]["step"] == kept
    assert all(tensor.isfinite().all() for tensor in state["network"].values())
    monkeypatch.undo()
    assert len(train(experiment, tiny_dataset(), tmp_path, device="cpu", resume=True).history) == EPOCHS


def test_a_validation_split_with_one_class_cannot_select_by_auc(tmp_path):
    dataset = tiny_dataset()
    one_class = dataclasses.replace(dataset, val=Split(dataset.val.images, torch.zeros_like(dataset.val.labels)))
    with pytest.raises(ValueError, match="single class"):
        train(tiny_experiment(), one_class, tmp_path, device="cpu")
    result = train(tiny_experiment(selection="accuracy"), one_class, tmp_path, device="cpu")
    assert result.history[0]["auc_macro_ovr"] is None


def test_the_learning_rate_is_that_of_the_one_cycle_schedule():
    settings = dataclasses.replace(tiny_experiment(warmup_share=0.25).train, epochs=8)
    run = Schedule(settings, N_TRAIN)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=settings.learning_rate,
        total_steps=run.n_steps,
        # PyTorch's peak is one step before the end of the given share.
        pct_start=(settings.warmup_share * run.n_steps + 1) / run.n_steps,
        div_factor=settings.learning_rate / settings.min_learning_rate,
        final_div_factor=1.0,
        cycle_momentum=False,
    )
    for step in range(run.n_steps):
        assert run.learning_rate(step) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < run.n_steps - 1:
            schedule.step()


def test_the_callers_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    train(tiny_experiment(), tiny_dataset(), tmp_path, device="cpu")
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [("cpu", "cpu", True), ("cpu:0", "cpu", True), ("cuda", "cuda:1", True), ("cuda:1", "cuda:1", True),
     ("cuda:0", "cuda:1", False), ("cuda:0", "cuda", True), ("cuda:1", "cuda", False), ("cpu", "cuda", False)],
)  # fmt: skip
def test_a_device_with_an_index_is_the_process_s_own(monkeypatch, wanted, given, expected):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert processes._is_given(torch.device(wanted), torch.device(given)) == expected
