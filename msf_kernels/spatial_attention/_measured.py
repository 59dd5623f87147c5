"""Which attention kernel was fastest on a GPU: the shipped table of measurements and its lookup.

`measured.json` is `{"format": 1, "gpus": {name: [row, ...]}}`, with the GPU's name as `torch.cuda.get_device_name`
gives it. A row is one measured call:

    {"dtype": "bfloat16", "head_dim": 64, "n_tokens": 256, "has_gradient": false,
     "microseconds": {"triton": 41.0, "sdpa": 55.5}}

Times include every copy that a backend needs; `has_gradient` rows time forward and backward together. A backend that
was not measured is missing from its row. The batch is no key: what serves a call must not depend on it, because the
bits of an item must not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).with_name("measured.json")
FORMAT = 1

_DTYPES = ("float16", "bfloat16", "float32")
_BACKENDS = ("triton", "sdpa", "flash_attn", "xformers", "reference")
_FIELDS = {"dtype", "head_dim", "n_tokens", "has_gradient", "microseconds"}


@dataclass(frozen=True)
class MeasuredCall:
    """One measured call and what each backend took for it.

    Args:
        dtype: `float16`, `bfloat16` or `float32`.
        head_dim: Channels per head.
        n_tokens: Tokens per item.
        has_gradient: Whether forward and backward were timed, not forward alone.
        fastest_first: Measured backends by time.
    """

    dtype: str
    head_dim: int
    n_tokens: int
    has_gradient: bool
    fastest_first: tuple[str, ...]


def parse_measured(table: Any, source: str) -> dict[str, tuple[MeasuredCall, ...]]:
    """Check a table and return its calls per GPU.

    Args:
        table: What the JSON file holds.
        source: Name of the file, for messages.

    Raises:
        ValueError: The table is not of the form above; the text names the place.
    """
    if not isinstance(table, Mapping) or table.get("format") != FORMAT or set(table) != {"format", "gpus"}:
        raise ValueError(f'{source} must be {{"format": {FORMAT}, "gpus": {{...}}}}; got {_shortened(table)}')
    if not isinstance(table["gpus"], Mapping):
        raise ValueError(f"{source}: gpus must map names of GPUs to lists of rows; got {_shortened(table['gpus'])}")
    calls = {}
    for gpu, rows in table["gpus"].items():
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise ValueError(f"{source}: gpus[{gpu!r}] must be a list of rows; got {_shortened(rows)}")
        calls[gpu] = tuple(_parse_row(row, f"{source}: gpus[{gpu!r}][{i}]") for i, row in enumerate(rows))
    return calls


def nearest_call(
    calls: Sequence[MeasuredCall], dtype: str, head_dim: int, n_tokens: int, has_gradient: bool
) -> MeasuredCall | None:
    """Return the measured call of this dtype, head dimension and direction whose token count is nearest in ratio."""
    same = [call for call in calls if (call.dtype, call.head_dim, call.has_gradient) == (dtype, head_dim, has_gradient)]
    return min(same, key=lambda call: abs(math.log(call.n_tokens / max(n_tokens, 1))), default=None)


@cache
def measured_calls() -> dict[str, tuple[MeasuredCall, ...]]:
    """Return the shipped table; read at the first call on a GPU."""
    return parse_measured(json.loads(MEASURED.read_text()), MEASURED.name)


def _parse_row(row: Any, place: str) -> MeasuredCall:
    if not isinstance(row, Mapping) or set(row) != _FIELDS:
        raise ValueError(f"{place} must have the fields {', '.join(sorted(_FIELDS))}; got {_shortened(row)}")
    if row["dtype"] not in _DTYPES:
        raise ValueError(f"{place}.dtype must be one of {', '.join(_DTYPES)}; got {row['dtype']!r}")
    for field in ("head_dim", "n_tokens"):
        if type(row[field]) is not int or row[field] < 1:
            raise ValueError(f"{place}.{field} must be an integer >= 1; got {row[field]!r}")
    if type(row["has_gradient"]) is not bool:
        raise ValueError(f"{place}.has_gradient must be true or false; got {row['has_gradient']!r}")
    times = row["microseconds"]
    if not isinstance(times, Mapping) or not times or not set(times) <= set(_BACKENDS):
        known = ", ".join(_BACKENDS)
        raise ValueError(f"{place}.microseconds must map some of {known} to times; got {_shortened(times)}")
    for name, time in times.items():
        if type(time) not in (int, float) or not 0 < time < math.inf:
            raise ValueError(f"{place}.microseconds.{name} must be a finite number > 0; got {time!r}")
    fastest_first = tuple(sorted(times, key=lambda name: (times[name], name)))
    return MeasuredCall(row["dtype"], row["head_dim"], row["n_tokens"], row["has_gradient"], fastest_first)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
