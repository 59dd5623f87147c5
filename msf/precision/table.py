"""Tables of measured evaluations: the one that is shipped, and the one that `msf tune` writes for this user.

A table is `{"format": 1, "processors": {key: [row, ...]}}`, with `Processor.key`. A row is one network at one
micro-batch: `{"base_channels": 64, "micro_batch": 16, "fp32": milliseconds, "bf16": milliseconds}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from msf.files.atomic import write_atomically
from msf.files.cache import cache_root

FORMAT = 1
UNMEASURED_MICRO_BATCH = 4
_DEARER = 0.1
SHIPPED = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Measured:
    """One network evaluated in both precisions, in turn.

    Args:
        base_channels: Width of the network, `UNetConfig.base_channels`.
        micro_batch: Samples of the evaluation.
        fp32: Milliseconds of the float32 form.
        bf16: Milliseconds of the bfloat16 form.
    """

    base_channels: int
    micro_batch: int
    fp32: float
    bf16: float


Table = dict[str, tuple[Measured, ...]]


def user_table_path() -> Path:
    """Return where `msf tune` keeps this user's measurements; the file need not exist."""
    return cache_root() / "precision.json"


@cache
def shipped_table() -> Table:
    """Return the measurements that come with the package."""
    return parse_table(SHIPPED.read_text(), SHIPPED.name)


def user_table() -> Table:
    """Return this user's measurements; empty where nothing was measured.

    Raises:
        ValueError: The file holds something else; the text says how to be rid of it.
    """
    path = user_table_path()
    try:
        return parse_table(path.read_text(), str(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{error} (the measurements of 'msf tune'; remove the file, or run 'msf tune --replace')"
        ) from error


def filled_micro_batch(rows: Sequence[Measured], base_channels: int) -> int:
    """Return up to which size micro-batches in bfloat16 are filled up: the smallest that costs a tenth more at most.

    Where bits are those of a size of batch, one sample costs as much as this many.

    Args:
        rows: Measurements of one processor; without any, 4.
        base_channels: Width of the network; the measurement of the nearest width counts.
    """
    costs = {row.micro_batch: row.bf16 / row.micro_batch for row in _nearest(rows, base_channels)}
    if not costs:
        return UNMEASURED_MICRO_BATCH
    return min(size for size, cost in costs.items() if cost <= (1 + _DEARER) * min(costs.values()))


def speed_of_bf16(rows: Sequence[Measured], base_channels: int) -> float:
    """Return how many times faster a sample is in bfloat16, of many: float32 at its best size, bfloat16 at its own.

    Args:
        rows: Measurements of one processor, at least one.
        base_channels: Width of the network; the measurement of the nearest width counts.
    """
    nearest = _nearest(rows, base_channels)
    size = filled_micro_batch(rows, base_channels)
    bf16 = next(row.bf16 / row.micro_batch for row in nearest if row.micro_batch == size)
    return min(row.fp32 / row.micro_batch for row in nearest) / bf16


def _nearest(rows: Sequence[Measured], base_channels: int) -> list[Measured]:
    """Return the measurements of the width that is nearest in ratio, the smaller of two."""
    widths = {row.base_channels for row in rows}
    nearest = min(widths, key=lambda width: (abs(math.log(width / base_channels)), width), default=0)
    return [row for row in rows if row.base_channels == nearest]


def write_user_rows(processor: str, rows: Sequence[Measured], *, replace: bool = False) -> Path:
    """Keep the measurements of a processor beside those of others, whole or not at all, and return the file.

    Args:
        processor: `Processor.key`.
        rows: At least one.
        replace: Forget what the file holds, whatever it is.

    Raises:
        ValueError: The file holds something else.
        OSError: It cannot be written.
    """
    kept = {} if replace else user_table()
    kept[processor] = tuple(rows)
    table = {"format": FORMAT, "processors": {key: [asdict(row) for row in its] for key, its in kept.items()}}
    path = user_table_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(table, indent=1) + "\n"))
    return path


def parse_table(text: str, source: str) -> Table:
    """Check a table and return its rows per processor.

    Args:
        text: Content of the file.
        source: Name of the file, for messages.

    Raises:
        ValueError: Not of the form above; the text names the place.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} must be JSON; got {_shortened(text)}") from error
    is_table = isinstance(table, Mapping) and set(table) == {"format", "processors"} and table["format"] == FORMAT
    if not is_table or not isinstance(table["processors"], Mapping):
        raise ValueError(f'{source} must be {{"format": {FORMAT}, "processors": {{...}}}}; got {_shortened(table)}')
    found = {}
    for key, rows in table["processors"].items():
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{source}: processors[{key!r}] must be a list of rows; got {_shortened(rows)}")
        found[key] = tuple(_row(row, f"{source}: processors[{key!r}][{i}]") for i, row in enumerate(rows))
    return found


def _row(row: Any, place: str) -> Measured:
    names = [entry.name for entry in fields(Measured)]
    if not isinstance(row, Mapping) or set(row) != set(names):
        raise ValueError(f"{place} must have the fields {', '.join(names)}; got {_shortened(row)}")
    for name, value in row.items():
        is_whole = name in ("base_channels", "micro_batch")
        is_number = type(value) is int or (type(value) is float and not is_whole)
        if not is_number or not 0 < value < math.inf:
            kind = "a whole number >= 1" if is_whole else "a finite number > 0"
            raise ValueError(f"{place}.{name} must be {kind}; got {_shortened(value)}")
    return Measured(**row)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
