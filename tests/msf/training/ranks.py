"""Trainings shared by several processes: `python ranks.py FOLDER`, for test_processes.py.

Everything is imported once; the processes of every training then are forks, set up as a launcher would. Each leaves
what it saw in a JSON file.
"""

import dataclasses
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import accelerate  # noqa: F401  # before the forks, each of which would import it, as what follows
import sklearn.metrics  # noqa: F401
import torch
import torch._dynamo
import torchmetrics  # noqa: F401

import msf.training.train as train_module
from msf.config import CodeConfig, DataConfig, ExperimentConfig, PathConfig, TrainConfig, UNetConfig
from msf.data import ImageDataset, Split, make_phantoms
from msf.interruption import interruptible

N_TRAIN, N_VAL = 21, 11
# 21 pictures in batches of 6: the last one holds 3, less than four processes have hands.
EXPERIMENT = ExperimentConfig(
    data=DataConfig(image_size=8, shift=0.1, brightness=0.1),
    code=CodeConfig(name="simplex"),
    path=PathConfig(end_share=0.5),
    network=UNetConfig(
        base_channels=32, channel_multipliers=(1, 1), n_res_blocks=1, attention_down_rates=(2,), head_channels=32,
        dropout=0.1,
    ),
    train=TrainConfig(
        epochs=3, batch_size=6, validation_samples=1, validate_every=1, precision="fp32", label_drop=0.2,
        gradient_clip=0.5, learning_rate=1e-3, checkpoint_seconds=0.0,
    ),
)  # fmt: skip
# Name, processes, changes of the training, and what befalls which of them at which step.
RUNS = (
    ("one", 1, {}, None),
    ("two", 2, {}, None),
    ("four", 4, {}, None),
    ("in parts", 1, {"accumulate": 3}, None),
    ("two in parts", 2, {"accumulate": 2}, None),
    ("two, then four", 2, {}, (0, 6, "stop")),
    ("two, then four", 4, {}, None),
    ("an error", 2, {}, (1, 5, "error")),
    ("a kill", 2, {}, (1, 5, "kill")),
    ("the main one", 2, {}, (0, 5, "error")),
    ("a signal", 2, {}, (None, 5, "signal")),
    ("a folder in use", 2, {}, (0, 0, "claim")),
)


def dataset():
    arrays = make_phantoms(0, {"train": N_TRAIN, "val": N_VAL})
    splits = {
        name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"].flatten().long()) for name in ("train", "val")
    }
    return ImageDataset(
        name="tiny", test=None, class_names=tuple("abcde"), flips=True, is_ordinal=False, licence="", citation="",
        fingerprint="tiny", **splits,
    )  # fmt: skip


class Stopped(Exception):
    pass


def befall(rank, event, seen):
    """Record the losses of every step, and let something happen at one of them, in the middle of the step."""
    step, draw = train_module.TrainingRun.step, train_module.GradientStep.draw

    def recorded(run, rows):
        terms = step(run, rows)
        seen["losses"].append(terms.tolist())
        return terms

    def disturbed(gradient_step, rows, number, images):
        if event is not None and event[0] in (rank, None) and number == event[1]:
            if event[2] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if event[2] == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            raise {"stop": Stopped, "error": OSError}[event[2]](f"at step {number}")
        return draw(gradient_step, rows, number, images)

    train_module.TrainingRun.step = recorded
    train_module.GradientStep.draw = disturbed
    train_module.REPORT_EVERY = 1


def work(rank, name, n, changes, event, folder, data):
    """Be one process of a training."""
    seen = {"losses": [], "error": None}
    place = folder / name
    if event is not None and event[2] == "claim" and rank == 0:
        (place / "file").parent.mkdir()
        place = place / "file"
        place.write_text("")
    befall(rank, event, seen)
    experiment = dataclasses.replace(EXPERIMENT, train=dataclasses.replace(EXPERIMENT.train, **changes))
    writes = []
    sys.addaudithook(lambda what, arguments: writes.append(what) if _is_written(what, arguments, place) else None)
    try:
        with interruptible():
            result = train_module.train(experiment, data, place, device="cpu", resume=True)
        seen["history"] = result.history
        seen["n_processes"] = result.n_processes
    except BaseException as error:
        seen["error"] = f"{type(error).__name__}: {error}"
        seen["notes"] = getattr(error, "__notes__", [])
    seen["n_writes"] = len(writes)
    (folder / f"{name}-{n}-{rank}.json").write_text(json.dumps(seen))


def _is_written(what, arguments, place):
    if what == "open":
        path, mode, _ = arguments
        return isinstance(path, str) and path.startswith(str(place)) and bool(mode) and mode[0] in "wax"
    return what in ("os.rename", "os.mkdir") and str(arguments[0]).startswith(str(place))


def run(folder, data, name, n, changes, event):
    """Let n processes train; return how each ended, and after how many seconds the last one did."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started, children = time.monotonic(), []
    for rank in range(n):
        child = os.fork()
        if not child:
            code = 1
            try:
                if n > 1:
                    os.environ.update(
                        RANK=str(rank), WORLD_SIZE=str(n), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(n),
                        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1",
                    )  # fmt: skip
                work(rank, name, n, changes, event, folder, data)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"codes": codes, "seconds": time.monotonic() - started}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    data = dataset()
    print(json.dumps({f"{name}-{n}": run(place, data, name, n, changes, event) for name, n, changes, event in RUNS}))
