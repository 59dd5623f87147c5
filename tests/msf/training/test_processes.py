"""Several processes of one training: they do what one does, and end together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from msf.checkpoints.folder import load_checkpoint
from msf.judge.uncertainty import Draws, make_prediction
from msf.training.processes import Processes
from msf.training.train import STATE_FILE
from msf.training.validation import joined

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes are forks")

STEPS_PER_EPOCH, N_STEPS = 4, 12
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run all trainings of `ranks.py`; returns their folder and how their processes ended."""
    folder = tmp_path_factory.mktemp("ranks")
    finished = subprocess.run(
        [sys.executable, Path(__file__).with_name("ranks.py"), folder],
        check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return folder, json.loads(finished.stdout)


def seen(runs, name, n, rank=0):
    return json.loads((runs[0] / f"{name}-{n}-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n"), [("two", 2), ("four", 4), ("in parts", 1), ("two in parts", 2)])
def test_processes_and_parts_have_the_losses_of_one_process_and_the_whole_batch(runs, name, n):
    one, many = seen(runs, "one", 1), seen(runs, name, n)
    assert len(one["losses"]) == N_STEPS
    assert many["n_processes"] == n
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=0, atol=TOLERANCE)
    for row, expected in zip(many["history"], one["history"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)  # figures of the validation, which they share
    weights, expected = (load_checkpoint(runs[0] / folder).state_dict for folder in (name, "one"))
    # Adam turns a gradient that is rounding alone into a step of full length: not all weights can agree.
    distance = torch.cat([(weights[key] - value).flatten() for key, value in expected.items()])
    assert distance.square().mean().sqrt() < 1e-4


@pytest.mark.slow
def test_all_processes_see_the_same_losses_and_only_the_main_one_writes(runs):
    views = [seen(runs, "four", 4, rank) for rank in range(4)]
    assert all(view["losses"] == views[0]["losses"] and view["history"] == views[0]["history"] for view in views)
    assert [view["n_writes"] > 0 for view in views] == [True, False, False, False]


@pytest.mark.slow
def test_four_processes_go_on_with_what_two_began(runs):
    stopped, resumed = (seen(runs, "two, then four", n) for n in (2, 4))
    assert stopped["error"] == "Stopped: at step 6"
    assert "up to step 6 of 12" in stopped["notes"][-1]
    assert (len(stopped["losses"]), len(resumed["losses"])) == (6, 6)
    expected = seen(runs, "one", 1)["losses"]
    np.testing.assert_allclose(stopped["losses"] + resumed["losses"], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("an error", 0, "ProcessLostError: process 1 of 2 ended: at step 5"),
        ("a kill", -9, "ProcessLostError: one of 2 processes ended without a word"),
    ],
)
def test_a_process_that_fails_ends_the_run_and_is_named_and_the_main_one_saves(runs, name, code, told):
    assert runs[1][f"{name}-2"]["codes"] == [0, code]
    assert runs[1][f"{name}-2"]["seconds"] < 60
    main = seen(runs, name, 2)
    assert main["error"].startswith(told)
    assert "up to step 5 of 12" in main["notes"][-1]
    assert torch.load(runs[0] / name / STATE_FILE, weights_only=True)["position"]["step"] == 5


@pytest.mark.slow
def test_the_others_end_with_the_main_one(runs):
    assert seen(runs, "the main one", 2)["error"] == "OSError: at step 5"
    assert seen(runs, "the main one", 2, 1)["error"].startswith("ProcessLostError: process 0 of 2 ended")
    assert "is a file" in seen(runs, "a folder in use", 2)["error"]
    assert seen(runs, "a folder in use", 2, 1)["error"].startswith("ProcessLostError: process 0 of 2 ended")


@pytest.mark.slow
def test_a_signal_to_all_is_saved_by_the_main_one(runs):
    main, other = (seen(runs, "a signal", 2, rank) for rank in range(2))
    assert main["error"] == "Interrupted: interrupted by SIGTERM"
    assert "up to step 5 of 12" in main["notes"][-1]
    assert other["error"].startswith("Interrupted")
    assert other["notes"] == []


class Lone:
    """An accelerator of one process."""

    num_processes, process_index = 1, 0


def test_rows_are_shared_without_loss_and_filled_up_with_what_does_not_count():
    for n in (1, 2, 5, 8):
        parts = []
        for index in range(4):
            processes = Processes(Lone())
            processes.n, processes.index = 4, index
            rows, counts = processes.padded_rows(n)
            assert len(rows) == -(-n // 4)
            assert torch.equal(rows[counts], processes.rows(n))
            assert (rows[~counts] == 0).all()
            parts.append(processes.rows(n))
        assert sorted(torch.cat(parts).tolist()) == list(range(n))


def test_one_process_waits_for_nobody():
    processes = Processes(Lone())
    processes.wait()
    assert processes.gather(3) == [3]
    assert processes.from_main(lambda: 4) == 4
    assert processes.sum(torch.ones(2)).tolist() == [1, 1]
    assert processes.lost(RuntimeError("gloo")) is None


def test_a_prediction_is_put_together_in_the_order_of_the_pictures():
    distance = torch.rand(7, 3, dtype=torch.float64)
    draws = {"distance_std": distance, "votes": distance.softmax(1), "pixel_votes": distance}

    def predicted(rows):
        part = Draws(class_distance=distance[rows], **{name: values[rows] for name, values in draws.items()})
        return make_prediction(part, n_samples=2, nfe=1, micro_batch=4)

    whole = predicted(slice(None))
    parts = joined([predicted(slice(k, None, 3)) for k in range(3)])
    assert parts.to_dict() == whole.to_dict()
