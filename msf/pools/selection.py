"""Which pictures of a pool are kept, by what the report says of each, and as many at random to compare with."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from msf.data import seeded_generator
from msf.files.json_text import parse_json
from msf.pools.pool import Pool

REPORT_FILE, ROWS_FILE, PAGE_FILE = "report.json", "pictures.csv", "nearest.png"
Judge = Literal["flow", "classifier", "both", "none"]
_CONTROL_STREAM = 5


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a picture needs to be kept.

    Args:
        agree: Whose class must be the label: the flow's, the independent classifier's, both or none.
        certain: Share of every class that is kept by certainty, in (0, 1]: the least uncertain.
        score: Uncertainty score of the flow.
        keep_memorised: Keep pictures that are called memorised.

    Raises:
        ValueError: A share out of range.
    """

    agree: Judge = "both"
    certain: float = 1.0
    score: str = "predictive_entropy"
    keep_memorised: bool = False

    def __post_init__(self) -> None:
        """Check the share."""
        if not 0 < self.certain <= 1:
            raise ValueError(f"certain must be in (0, 1]; got {self.certain}")


def read_report(folder: Path, pool: Pool) -> list[dict[str, str]]:
    """Return the rows of a report on a pool.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is of another pool, or damaged.
    """
    paths = [folder / name for name in (REPORT_FILE, ROWS_FILE)]
    if not all(path.is_file() for path in paths):
        raise FileNotFoundError(f"{str(folder)!r} holds no report: 'msf pool-report' makes one")
    figures = parse_json(paths[0].read_bytes(), repr(str(paths[0])), "the figures of a pool report")
    with paths[1].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not isinstance(figures, dict) or figures.get("pool_sha256") != pool.digest or len(rows) != len(pool):
        raise ValueError(f"the report in {str(folder)!r} is of another pool than {str(pool.place)!r}: make it anew")
    return rows


def select(rows: Sequence[dict[str, str]], selection: Selection) -> tuple[list[int], dict[str, Any]]:
    """Return the numbers of the pictures that are kept, ascending, and how many each condition refuses.

    Certainty is ranked within the class among all of its pictures; ties go to the first.

    Args:
        rows: Of a report.
        selection: The conditions.

    Raises:
        ValueError: The report has no such score.
    """
    column = f"score_{selection.score}"
    known = [name.removeprefix("score_") for name in rows[0] if name.startswith("score_")]
    if selection.score not in known:
        raise ValueError(f"score must be one of {', '.join(known)}; got {selection.score!r}")
    judges = {"both": ("flow", "classifier"), "none": ()}.get(selection.agree, (selection.agree,))
    disagree = {n for n, row in enumerate(rows) if any(row[f"{judge}_agrees"] != "True" for judge in judges)}
    memorised = (
        set() if selection.keep_memorised else {n for n, row in enumerate(rows) if row["is_memorised"] == "True"}
    )
    uncertain: set[int] = set()
    for label in {row["label"] for row in rows}:
        own = [n for n, row in enumerate(rows) if row["label"] == label]
        order = sorted(own, key=lambda n: float(rows[n][column]))
        uncertain |= set(order[math.ceil(selection.certain * len(own)) :])
    refused = disagree | memorised | uncertain
    kept = [n for n in range(len(rows)) if n not in refused]
    counts = {
        "n": len(rows), "n_kept": len(kept), "n_disagree": len(disagree), "n_memorised": len(memorised),
        "n_uncertain": len(uncertain),
    }  # fmt: skip
    return kept, counts


def control_of(pool: Pool, kept: Sequence[int], *, seed: int) -> list[int]:
    """Return as many pictures of every class as are kept of it, at random from all; of an archive of every split too.

    Args:
        pool: All pictures.
        kept: Numbers of those that are kept.
        seed: Of the choice.

    Returns:
        Numbers, ascending.
    """
    order = torch.randperm(len(pool), generator=seeded_generator(seed, _CONTROL_STREAM)).tolist()

    def kind(number: int) -> tuple[int, str]:
        return int(pool.labels[number]), pool.rows[number].get("split", "")

    wanted: dict[tuple[int, str], int] = {}
    for number in kept:
        wanted[kind(number)] = wanted.get(kind(number), 0) + 1
    chosen = []
    for number in order:
        if wanted.get(kind(number), 0):
            wanted[kind(number)] -= 1
            chosen.append(number)
    return sorted(chosen)
