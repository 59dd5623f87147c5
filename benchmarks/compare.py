"""Regressions between two runs: does the later one do worse than noise and the machine's own drift explain?

A figure of ours got worse when all of this holds:

1. Its median is worse by at least the smallest share that counts (10 % unless told; twice that where fewer than five
   samples were taken, since two percentiles of three samples are no interval).
2. The intervals from the 20th to the 80th percentile do not overlap.
3. Both hold after the drift of the machine is taken out: times are divided by the median change of the peers that were
   timed in turn with ours, which run the same code in both runs, and likewise if they are divided by the median of
   that over all jobs, since a peer may have moved by itself. Where a job has no peers, or versions differ, nothing is
   taken out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.rows import MACHINE, OURS, Row, load_rows

LOWER_IS_BETTER = frozenset({"us", "ms", "s", "bytes", "J"})
FEW_SAMPLES = 5
# Ratios of figures that are compared themselves, statements, and figures of the machine.
_NOT_COMPARED = ("speedup_vs:", "time_over:", "share_of_limit", "boundary_over:", "arithmetic", "traffic", "rate",
                 "label_agreement:", "distance_difference:", "largest_difference:",
                 "largest_over_smallest", "memory_of_peer:", "relative_rms_difference:")  # fmt: skip

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Change:
    """A figure in both runs.

    Args:
        before: Row of the first run.
        after: Row of the second.
        drift: Change of the machine, taken out of `ratio`: as the job's peers or as all jobs' show it, whichever leaves
            less.
        ratio: Median after over median before, without drift; above 1 is worse.
        verdict: `worse`, `better`, `same` or `lost` (measured before and not any more).
    """

    before: Row
    after: Row
    drift: float
    ratio: float
    verdict: str

    def __str__(self) -> str:
        """Return one line for a person."""
        row = self.before
        name = f"{row.job} {row.metric}"
        if self.verdict == "lost":
            return f"lost    {name}: {self.after.note}"
        percent = 100 * (self.ratio - 1)
        drift = f", machine drift {100 * (self.drift - 1):+.1f} % taken out" if self.drift != 1 else ""
        medians = f"{row.median:.4g} -> {self.after.median:.4g} {row.unit}"
        return f"{self.verdict:7} {name}: {percent:+.1f} % ({medians}{drift})"


def compare_files(before: Path, after: Path, least: float) -> int:
    """Print what changed; return 1 for a regression, 2 where the files cannot be compared."""
    try:
        changes = compare(load_rows(before), load_rows(after), least)
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}")
        return 2
    for change in changes:
        if change.verdict != "same":
            print(change)
    counts = {word: sum(change.verdict == word for change in changes) for word in ("worse", "lost", "better", "same")}
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return 1 if counts["worse"] or counts["lost"] else 0


def compare(before: Sequence[Row], after: Sequence[Row], least: float = 0.1) -> list[Change]:
    """Return the change of every figure of ours that is in both runs, or was lost because its job failed.

    Raises:
        ValueError: The runs have no figure in common, or were made on different machines.
    """
    earlier, later = _by_key(before), _by_key(after)
    common = [key for key in earlier if key in later]
    if not common:
        machines = [sorted({row.machine for row in rows}) for rows in (before, after)]
        raise ValueError(f"the runs have no figure in common: {machines[0]} against {machines[1]}")
    compared = [
        key
        for key, row in earlier.items()
        if key[2] == OURS and row.median is not None and not row.metric.startswith(_NOT_COMPARED)
    ]
    drifts = {key: _drift(key, earlier, later) for key in compared if key in later}
    known = [drift for drift in drifts.values() if drift is not None]
    changes = []
    for key, drift in drifts.items():
        candidates = [1.0] if drift is None else [drift, median(known)]
        found = [_change(earlier[key], later[key], candidate, least) for candidate in candidates]
        changes.append(min(found, key=lambda change: abs(math.log(change.ratio))))
    for key in [key for key in compared if key not in later]:
        # A job that failed has one row without a figure, under its own name; a job that was not run has none.
        failed = next((row for row in after if _is_failure_of(row, key)), None)
        if failed is not None:
            changes.append(Change(earlier[key], failed, 1.0, 1.0, "lost"))
    return changes


def _is_failure_of(row: Row, key: Key) -> bool:
    suite, job = key[:2]
    is_job = row.job == job or job.startswith(row.job + "-")
    return row.suite == suite and is_job and row.variant == OURS and row.median is None


def _by_key(rows: Sequence[Row]) -> dict[Key, Row]:
    return {(row.suite, row.job, row.variant, row.metric, row.machine): row for row in rows}


def _drift(key: Key, earlier: Mapping[Key, Row], later: Mapping[Key, Row]) -> float | None:
    """Median change of the peers' figures of the same job and metric; None where there are none."""
    if earlier[key].versions != later[key].versions or earlier[key].unit not in LOWER_IS_BETTER:
        return None
    changes = []
    for other, row in earlier.items():
        is_peer = other[:2] == key[:2] and other[3:] == key[3:] and not other[2].startswith((OURS, MACHINE))
        if is_peer and other in later and row.median and later[other].median:
            changes.append((later[other].median or 1.0) / row.median)
    return median(changes) if changes else None


def _change(before: Row, after: Row, drift: float, least: float) -> Change:
    if after.median is None or before.median is None or before.p20 is None or before.p80 is None:
        return Change(before, after, 1.0, 1.0, "lost")
    if after.p20 is None or after.p80 is None:
        raise ValueError(f"{after.job} {after.metric}: a median without percentiles")
    low, middle, high = (value / drift for value in (after.p20, after.median, after.p80))
    worse = middle / before.median if before.unit in LOWER_IS_BETTER else before.median / middle
    needed = least * (2 if min(before.n, after.n) < FEW_SAMPLES else 1)
    is_apart = low > before.p80 or high < before.p20
    verdict = "same"
    if is_apart and worse >= 1 + needed:
        verdict = "worse"
    elif is_apart and worse <= 1 / (1 + needed):
        verdict = "better"
    return Change(before, after, drift, worse, verdict)
