"""Trainings that are killed, in processes of their own: `python killed.py FOLDER ARCHIVE`, for test_killed.py.

Everything is imported once; every training then runs in a fork, which gets its signal at a chosen call of a function,
Python's or C's. What became of each is printed as JSON.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path

import accelerate  # noqa: F401  # before the forks, each of which would import it, as what follows
import sklearn.metrics  # noqa: F401
import torch
import torchmetrics  # noqa: F401

import msf.training.train  # noqa: F401
from msf.cli import console, main

SEED = 0
MOMENTS = [("anywhere", signal.SIGKILL)] * 8 + [("anywhere", signal.SIGTERM)] * 6
MOMENTS += [("in a save", signal.SIGKILL)] * 4 + [("in a save", signal.SIGTERM)] * 2
FLAGS = {
    "image-size": 8, "code": "simplex", "base-channels": 32, "channel-multipliers": 1, "n-res-blocks": 1,
    "attention-down-rates": 1, "head-channels": 32, "dropout": 0.1, "epochs": 2, "batch-size": 2,
    "validation-samples": 1, "validate-every": 1, "precision": "fp32", "checkpoint-seconds": 0, "device": "cpu",
}  # fmt: skip
# Called by those who write files: what flushes, what renames, what fills them, and what clears up.
SAVING = {"fsync", "replace", "write", "write_bytes", "write_text", "unlink", "mkdir"}


class Clock:
    """Counts calls, those of a kind of interest apart, and sends a signal at one of them."""

    def __init__(self, kind=None, moment=-1, number=0):
        self.counts = {"anywhere": 0, "in a save": 0}
        self.kind, self.moment, self.number = kind, moment, number

    def __call__(self, frame, event, argument):
        if event not in ("call", "c_call", "c_return"):
            return
        name = frame.f_code.co_name if event == "call" else getattr(argument, "__name__", "")
        for kind in ("anywhere", "in a save") if name in SAVING else ("anywhere",):
            if kind == self.kind and self.counts[kind] == self.moment:
                os.kill(os.getpid(), self.number)
            self.counts[kind] += 1


def forked(arguments, log, clock=None, counts=None):
    """Run the command line in a fork; return its exit code, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ["msf", *arguments]
        sys.setprofile(clock)
        main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.setprofile(None)
        if counts is not None:
            counts.write_text(json.dumps(clock.counts))
        os._exit(code)


def run(folder, archive):
    """Train once as a whole, then with a signal at every moment; return what became of each."""
    console.LINE_SECONDS = 3600.0  # no thread of its own should speak in between

    def command(name):
        return ["train", f"--dataset={archive}", f"--out={folder / name}", *(f"--{k}={v}" for k, v in FLAGS.items())]

    log = folder / "log"
    # Twice: the first one loads what is loaded at its first use, such as native code.
    outcomes = [{"name": "whole", "codes": [forked(command("whole"), log, Clock(), folder / "counts")]}]
    counts = json.loads((folder / "counts").read_text())
    chance = random.Random(SEED)
    for number, (kind, sent) in enumerate(MOMENTS):
        moment = chance.randrange(counts[kind] * 19 // 20)
        first = forked(command(str(number)), log, Clock(kind, moment, sent))
        codes = [first, forked([*command(str(number)), "--resume"], log)]
        outcomes.append({"name": str(number), "kind": kind, "signal": int(sent), "moment": moment, "codes": codes})
    return {"counts": counts, "outcomes": outcomes}


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork has no threads but its own
    print(json.dumps(run(Path(sys.argv[1]), sys.argv[2])))
