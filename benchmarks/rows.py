"""Results of benchmarks as JSON Lines: one row per measured quantity, with what it was measured on."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from msf_kernels.environment import describe_machine, versions

ROOT = Path(__file__).parents[1]
OURS = "ours"


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Args:
        suite: The benchmark.
        job: What was done.
        variant: Who did it: `ours`, or a peer.
        metric: `time`, `speedup_vs:<variant>` (a row of ours for every peer), `peak_memory`, ...
        unit: Unit of the numbers, such as `us`, `bytes`, `ratio`.
        median: Middle of the samples; None where the variant could not run, and the note says why.
        p20: 20th percentile.
        p80: 80th percentile.
        n: Number of samples.
        machine: Processor and threads, or GPU.
        device: `cpu` or `cuda`.
        versions: Of Python, PyTorch and the rest.
        commit: State of the source.
        note: What a reader must know: sizes, a reason.
    """

    suite: str
    job: str
    variant: str
    metric: str
    unit: str
    median: float | None
    p20: float | None
    p80: float | None
    n: int
    machine: str
    device: str
    versions: dict[str, str]
    commit: str
    note: str = ""


class RowWriter:
    """Makes rows of one suite on one device, and keeps them.

    Args:
        suite: The benchmark.
        device: Device under test.
    """

    def __init__(self, suite: str, device: torch.device) -> None:
        self.rows: list[Row] = []
        self._suite = suite
        machine = describe_machine(device)
        self._machine = str(machine.get("gpu", f"{machine['cpu']}, {machine['threads']} threads"))
        self._device = device.type
        self._versions = versions()
        if "driver" in machine:
            self._versions["driver"] = str(machine["driver"])
        self._commit = commit()

    def add(self, job: str, variant: str, metric: str, unit: str, samples: Iterable[float], note: str = "") -> Row:
        """Summarise samples in a row and return it; where there are none, the note says why."""
        values = sorted(samples)
        p20, median, p80 = (quantile(values, q) if values else None for q in (0.2, 0.5, 0.8))
        row = Row(
            self._suite,
            job,
            variant,
            metric,
            unit,
            median,
            p20,
            p80,
            len(values),
            self._machine,
            self._device,
            self._versions,
            self._commit,
            note,
        )
        self.rows.append(row)
        return row

    def add_speedups(self, job: str, seconds: Mapping[str, list[float]], note: str = "") -> None:
        """Add the ratio of each peer's time to ours, round by round, for variants that were timed interleaved."""
        for peer in seconds:
            if peer != OURS:
                self.add(job, OURS, f"speedup_vs:{peer}", "ratio", ratios(seconds[peer], seconds[OURS]), note)

    def table(self) -> str:
        """Return the rows as text, one a line."""
        return "\n".join(_line(row) for row in self.rows)

    def write(self, path: Path) -> None:
        """Write all rows, one JSON object a line."""
        path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in self.rows))


def ratios(numerator: list[float], denominator: list[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def quantile(ascending: list[float], q: float) -> float:
    """Return a quantile by linear interpolation between the sorted values."""
    position = q * (len(ascending) - 1)
    low = int(position)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (position - low) * (ascending[high] - ascending[low])


def commit() -> str:
    """Return the commit of this checkout, with `-dirty` where it has changes; `unknown` outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _line(row: Row) -> str:
    if row.median is None:
        return f"{row.job:40} {row.variant:14} {row.metric:26} not measured: {row.note}"
    spread = f"[{row.p20:.4g}, {row.p80:.4g}]"
    return f"{row.job:40} {row.variant:14} {row.metric:26} {row.median:10.4g} {row.unit:6} {spread:22} {row.note}"
