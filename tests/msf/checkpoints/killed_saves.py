"""Program of test_checkpoint.py: save checkpoints in child processes that are killed, and look at what they leave.

Usage: python killed_saves.py FOLDER. Prints JSON: how often each outcome was found, and every violation.
"""

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from msf.checkpoints.folder import load_checkpoint, save_checkpoint
from msf.config import CodeConfig, ExperimentConfig, TaskConfig, UNetConfig
from msf.network.unet import UNet

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.scandir")
N_DELAYS = 12


def contents(value: float, code: str, use_scale_shift_norm: bool):
    """Return arguments of save_checkpoint whose parts all belong together, recognisably."""
    network = UNetConfig(
        base_channels=32,
        channel_multipliers=(1,),
        n_res_blocks=1,
        attention_down_rates=(),
        head_channels=32,
        use_scale_shift_norm=use_scale_shift_norm,
    )
    with torch.device("meta"):
        shapes = UNet(network, 4, 4).state_dict()
    tensors = {name: torch.full(tensor.shape, value) for name, tensor in shapes.items()}
    task = TaskConfig(n_classes=int(value) + 2, image_channels=1)
    return task, ExperimentConfig(code=CodeConfig(name=code), network=network), tensors


OLD, NEW = contents(1.0, "rgb", False), contents(2.0, "one_hot", True)


def is_same(loaded, saved) -> bool:
    tensors_are_equal = loaded[2].keys() == saved[2].keys() and all(
        torch.equal(tensor, saved[2][name]) for name, tensor in loaded[2].items()
    )
    return loaded[:2] == saved[:2] and tensors_are_equal


def outcome(folder: Path) -> str:
    try:
        loaded = load_checkpoint(folder)
    except FileNotFoundError:
        return "none"
    except Exception as error:  # whatever it is, it is the finding
        return f"broken: {error!r}"
    if is_same(loaded, OLD):
        return "old"
    return "new" if is_same(loaded, NEW) else "mixed"


def save_and_die(folder: Path, arm) -> bool:
    """Save in a child that `arm` prepares for its death; return whether it died by SIGKILL or SIGALRM."""
    child = os.fork()
    if child == 0:
        arm()
        save_checkpoint(folder, *NEW)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"the save failed: {status}")
    return os.WIFSIGNALED(status)


def kill_at_event(folder: Path, number: int):
    """Return an `arm` that kills the process before its file operation of that number."""

    def arm() -> None:
        seen = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal seen
            if event in WATCHED and arguments and str(arguments[0]).startswith(str(folder)):
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(hook)

    return arm


def kill_after(seconds: float):
    """Return an `arm` that kills the process after a time, in the middle of whatever it does."""

    def arm() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    return arm


def main(root: Path) -> None:
    found, violations = Counter(), []

    def probe(label: str, arm, start) -> bool:
        folder = root / "checkpoint"
        shutil.rmtree(folder, ignore_errors=True)
        if start is not None:
            save_checkpoint(folder, *start)
            (folder / "notes.txt").write_text("kept")
        has_died = save_and_die(folder, arm(folder))
        state = outcome(folder)
        found[f"{label} {state}"] += 1
        allowed = {"new"} if not has_died else {"new", "old" if start is not None else "none"}
        if state not in allowed:
            violations.append(f"{label}: {state}")
        save_checkpoint(folder, *NEW)
        left = sorted(path.name for path in folder.iterdir())
        expected = ["config.json", "model.safetensors"] + (["notes.txt"] if start is not None else [])
        if left != expected or outcome(folder) != "new":
            violations.append(f"{label}, after another save: {left}")
        return has_died

    for label, start in (("first", None), ("again", OLD)):
        number = 0
        while probe(f"{label} event", lambda folder, number=number: kill_at_event(folder, number), start):
            number += 1
        begin = time.perf_counter()
        save_checkpoint(root / "timing", *NEW)
        duration = time.perf_counter() - begin
        for i in range(N_DELAYS):
            delay = 1e-6 + 3 * duration * i / N_DELAYS
            probe(f"{label} time", lambda _folder, delay=delay: kill_after(delay), start)
    print(json.dumps({"found": found, "violations": violations}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
