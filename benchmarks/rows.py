"""Results of benchmarks as JSON Lines: one row per measured quantity, with what it was measured on."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from msf.precision.processor import this_processor
from msf_kernels.environment import describe_machine, versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OURS = "ours"
MACHINE = "machine"
PEERS = ("diffusers", "flash-attn", "liger-kernel", "torch-uncertainty", "torchcfm", "torchdiffeq", "torchmetrics",
         "torchode", "torchvision", "xformers", "zuko")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    Args:
        suite: The benchmark.
        job: What was done.
        variant: Who did it: `ours`, a peer, or `machine` for a limit of the machine itself.
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
        suite: The benchmark; may be set anew.
        device: Device under test.
        remark: Added to every note.
    """

    def __init__(self, suite: str, device: torch.device, remark: str = "") -> None:
        self.rows: list[Row] = []
        self.suite = suite
        self._remark = remark
        machine = describe_machine(device)
        self._machine = machine_name(device)
        self._device = device.type
        self._versions = versions() | peer_versions()
        if "driver" in machine:
            self._versions["driver"] = str(machine["driver"])
        self._commit = commit()

    def add(self, job: str, variant: str, metric: str, unit: str, samples: Iterable[float], note: str = "") -> Row:
        """Summarise samples in a row and return it; where there are none, the note says why."""
        values = sorted(samples)
        p20, median, p80 = (quantile(values, q) if values else None for q in (0.2, 0.5, 0.8))
        row = Row(
            self.suite,
            job,
            variant,
            metric,
            unit,
            median,
            p20,
            p80,
            len(values),
            self._machine if self._device == "cuda" else f"{self._machine}, {torch.get_num_threads()} threads",
            self._device,
            self._versions,
            self._commit,
            "; ".join(filter(None, [note, self._remark])),
        )
        self.rows.append(row)
        return row

    def add_speedups(self, job: str, seconds: Mapping[str, list[float]], notes: Mapping[str, str]) -> None:
        """Add the ratio of each peer's time to ours, round by round, for variants that were timed interleaved.

        The note of a ratio is that of the peer, which may say how its time was taken.
        """
        for peer in [name for name in seconds if name != OURS]:
            values = ratios(seconds[peer], seconds[OURS])
            self.add(job, OURS, f"speedup_vs:{peer}", "ratio", values, notes.get(peer, ""))

    def table(self, first: int = 0) -> str:
        """Return the rows from the given one on as text, one a line."""
        return "\n".join(_line(row) for row in self.rows[first:])

    def write(self, path: Path, rows: Sequence[Row] | None = None) -> None:
        """Write all rows, or the given ones, one JSON object a line."""
        chosen = self.rows if rows is None else rows
        path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in chosen))


def load_rows(path: Path) -> list[Row]:
    """Read rows from JSON Lines, or from the list `rows` of one JSON object.

    Raises:
        ValueError: Something else is in the file.
    """
    text = path.read_text()
    try:
        try:
            whole = json.loads(text)
            found = whole.get("rows", [whole])
        except json.JSONDecodeError:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        return [_row(values) for values in found]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not rows of a benchmark: {error!r}") from error


def _row(values: dict[str, Any]) -> Row:
    return Row(**{field.name: values[field.name] for field in fields(Row)})


def peer_versions() -> dict[str, str]:
    """Return the versions of the peers that are installed."""
    found = {}
    for name in PEERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with its family and model: `AMD EPYC` alone can be of any."""
    machine, processor = describe_machine(device), this_processor()
    return str(machine.get("gpu", f"{machine['cpu']} ({processor.family}/{processor.model})"))


def machine_folder(device: torch.device) -> Path:
    """Return where results of this machine are kept: named after its GPU, or its processor and number of cores."""
    name = machine_name(device)
    if device.type == "cpu":
        name = f"{name} {os.cpu_count()} cores"
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


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
    """Return the commit of this checkout, with `-dirty` where its source has changes; `unknown` outside a checkout.

    Results are no source: a run writes them suite by suite.
    """
    try:
        head = _git("describe", "--always", "--abbrev=12", "--exclude=*")
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changes else head


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()


def _line(row: Row) -> str:
    if row.median is None:
        return f"{row.job:40} {row.variant:14} {row.metric:26} not measured: {row.note}"
    spread = f"[{row.p20:.4g}, {row.p80:.4g}]"
    return f"{row.job:40} {row.variant:14} {row.metric:26} {row.median:10.4g} {row.unit:6} {spread:22} {row.note}"
