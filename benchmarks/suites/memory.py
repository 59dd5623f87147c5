"""Peak memory, every measurement in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.context import Context
from benchmarks.registry import Job
from benchmarks.rows import OURS, ROOT, ratios

SUITE = "memory"
HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def jobs() -> Iterator[Job]:
    yield PeakMemory(
        suite=SUITE,
        name="engine-memory-s4096",
        note="one input, statistics of 4096 samples, against 64: memory does not grow with the number of samples",
        tests=("tests/msf_kernels/sampling/test_draw.py",),
        works={
            OURS: ["engine", "--samples", "4096"],
            "ours-s64": ["engine", "--samples", "64"],
        },
    )
    for model in ("pixel", "latent"):
        size = ["--model", model, "--size", "32", "--batch", "16"]
        yield PeakMemory(
            suite=SUITE,
            name=f"{model}-evaluation-mb16-memory",
            note=f"one evaluation of the published {model} network, micro-batch 16; weights not counted",
            tests=("tests/msf/network/test_unet.py", "tests/msf/network/inference"),
            works={
                variant: ["evaluation", *size, "--variant", variant]
                for variant in (OURS, "authors", "eager-bf16", "eager-fp32")
            },
        )
        yield PeakMemory(
            suite=SUITE,
            name=f"{model}-float32-form-memory",
            note=f"published {model} network made and evaluated once, micro-batch 16, float32, weights counted; the "
            "plain network with as many bytes beside it as the form's transformed weights have",
            tests=("tests/msf/network/inference",),
            works={
                OURS: ["first-evaluation", *size, "--variant", "ours-fp32"],
                "eager-fp32": ["first-evaluation", *size, "--variant", "eager-fp32"],
            },
        )


@dataclass(frozen=True, kw_only=True)
class PeakMemory(Job):
    """Peak memory of variants.

    Args:
        works: Arguments of `benchmarks.peak_memory` per variant, `ours` first.
        n_rounds: Processes per variant.
    """

    works: Mapping[str, Sequence[str]]
    n_rounds: int = 3

    def measure(self, context: Context) -> None:
        """Run the processes in turn; add peaks and, per peer, how many times ours it takes."""
        n_rounds = context.rounds or (1 if context.quick else self.n_rounds)
        peaks: dict[str, list[float]] = {name: [] for name in self.works}
        reasons: dict[str, str] = {}
        for _ in range(n_rounds):
            for name, work in self.works.items():
                peak = None if name in reasons else _peak(work, context, reasons, name)
                if peak is not None:
                    peaks[name].append(peak)
        for name, samples in peaks.items():
            context.writer.add(self.name, name, "peak_memory", "bytes", samples, reasons.get(name, self.note))
        for peer in [name for name in peaks if name != OURS and len(peaks[name]) == len(peaks[OURS])]:
            ratio = ratios(peaks[peer], peaks[OURS])
            context.writer.add(self.name, OURS, f"memory_of_peer:{peer}", "ratio", ratio, self.note)


def _peak(work: Sequence[str], context: Context, reasons: dict[str, str], name: str) -> float | None:
    machine = ["--device", context.device.type, "--threads", str(torch.get_num_threads())]
    command = [sys.executable, "-m", "benchmarks.peak_memory", *work, *machine]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | HAND_BACK)
    if done.returncode:
        reasons[name] = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return None
    return float(json.loads(done.stdout)["peak_bytes"])
