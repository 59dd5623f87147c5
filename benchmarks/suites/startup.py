"""What a user waits for before anything is computed: imports, the command line's help, the first prediction.

Every sample is a process of its own. Files are in the system's cache after the first round, which is not counted;
processes start cold otherwise.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks import workloads
from benchmarks.context import Context
from benchmarks.registry import Job
from benchmarks.rows import OURS, ROOT, ratios

SUITE = "end-to-end"
N_PICTURES = N_SAMPLES = 64
IMPORT_TORCH = "import-torch"
COMMANDS = {
    IMPORT_TORCH: "import torch",
    "msf-kernels": "import msf_kernels",
    "msf-help": "import sys; sys.argv = ['msf', '--help']; from msf.cli import main; main()",
}


def jobs() -> Iterator[Job]:
    yield Startup(
        suite=SUITE,
        name="import-msf-kernels",
        note="import msf_kernels in a new process",
        tests=("tests/test_import_rules.py",),
        commands=lambda folder: {OURS: _python(COMMANDS["msf-kernels"]), IMPORT_TORCH: _python(COMMANDS[IMPORT_TORCH])},
        largest_ratio={IMPORT_TORCH: 1.3},
    )
    yield Startup(
        suite=SUITE,
        name="msf-help",
        note="msf --help in a new process",
        tests=("tests/test_import_rules.py",),
        commands=lambda folder: {OURS: _python(COMMANDS["msf-help"]), IMPORT_TORCH: _python(COMMANDS[IMPORT_TORCH])},
        largest_ratio={IMPORT_TORCH: 1.5},
    )
    yield Startup(
        suite=SUITE,
        name="cold-start-first-result",
        note="new process: import, load the 28 x 28 checkpoint, classify one picture with one sample",
        tests=("tests/msf/checkpoints/test_folder.py",),
        commands=_cold_start,
    )
    yield Startup(
        suite=SUITE,
        name="classify-64-files-s64-process",
        note=f"new process: msf classify with its defaults, {N_PICTURES} files of 32x32 pictures, {N_SAMPLES} samples "
        "each, 28 x 28 model",
        tests=("tests/msf/cli/test_classify_files.py",),
        commands=_classify_files,
        largest_ratio={"authors": 0.5},
        n_rounds=3,
    )


def _classify_files(folder: Path) -> Mapping[str, Sequence[str]]:
    """The same files of pictures, classified by the command with its defaults, and by the published pipeline."""
    from PIL import Image

    model = workloads.pixel()
    checkpoint, pictures = folder / "network", folder / "pictures"
    model.flow.save_pretrained(checkpoint)
    pictures.mkdir()
    pixels = ((model.images(N_PICTURES) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture.numpy()).save(pictures / f"{number:02d}.png")
    ours = [sys.executable, "-m", "msf", "classify", str(pictures), "--checkpoint", str(checkpoint)]
    theirs = [sys.executable, "-m", "benchmarks.cold_start", "authors-pictures", str(checkpoint), str(pictures)]
    return {
        OURS: [*ours, "--n-samples", str(N_SAMPLES), "--csv", str(folder / "rows.csv")],
        "authors": [*theirs, str(N_SAMPLES)],
    }


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _cold_start(folder: Path) -> Mapping[str, Sequence[str]]:
    workloads.pixel().flow.save_pretrained(folder)
    return {
        OURS: [sys.executable, "-m", "benchmarks.cold_start", "ours", str(folder)],
        "authors": [sys.executable, "-m", "benchmarks.cold_start", "authors", str(folder)],
        IMPORT_TORCH: _python(COMMANDS[IMPORT_TORCH]),
    }


@dataclass(frozen=True, kw_only=True)
class Startup(Job):
    """Wall time of processes, in turn.

    Args:
        commands: Command of each variant, `ours` first, given a folder that is removed afterwards.
        largest_ratio: Wanted: time of ours over that of a peer, at most.
        n_rounds: Processes per variant.
    """

    commands: Callable[[Path], Mapping[str, Sequence[str]]]
    largest_ratio: Mapping[str, float] = field(default_factory=dict)
    n_rounds: int = 9

    def measure(self, context: Context) -> None:
        """Run every variant's process in turn."""
        n_rounds = context.rounds or (1 if context.quick else self.n_rounds)
        with tempfile.TemporaryDirectory() as folder:
            commands = self.commands(Path(folder))
            failed = {name: reason for name, command in commands.items() if (reason := _run(command)[1])}
            for name, reason in failed.items():
                context.writer.add(self.name, name, "time", "s", [], reason)
            running = {name: command for name, command in commands.items() if name not in failed}
            seconds: dict[str, list[float]] = {name: [] for name in running}
            for _ in range(n_rounds):
                for name, command in running.items():
                    seconds[name].append(_run(command)[0])
        for name, samples in seconds.items():
            context.writer.add(self.name, name, "time", "s", samples, self.note)
        if OURS not in seconds:
            return
        peers = {name: samples for name, samples in seconds.items() if name != IMPORT_TORCH}
        context.writer.add_speedups(self.name, peers, dict.fromkeys(peers, self.note))
        for peer in [name for name in seconds if name != OURS]:
            wanted = self.largest_ratio.get(peer)
            note = f"wanted: at most {wanted:g}" if wanted else self.note
            context.writer.add(
                self.name, OURS, f"time_over:{peer}", "ratio", ratios(seconds[OURS], seconds[peer]), note
            )


def _run(command: Sequence[str]) -> tuple[float, str]:
    """Return wall seconds, and why the process failed or an empty text."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    seconds = time.perf_counter() - started
    if done.returncode == 0:
        return seconds, ""
    last = done.stderr.strip().splitlines()
    return seconds, last[-1] if last else f"exit code {done.returncode}"
