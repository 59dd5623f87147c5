"""Which backend was fastest on a GPU: tables of measurements that operators ship as data, and their lookup.

An operator's `measured.json` is `{"format": 1, "gpus": {name: [row, ...]}}`, with the GPU's name as
`torch.cuda.get_device_name` gives it. A row is one measured call: the operator's key fields, and
`"microseconds": {backend: time}`. Times include every copy that a backend needs; a backend that was not measured is
missing from its row. The batch is no key: what serves a call must not depend on it, because the bits of an item must
not. `python -m msf_kernels.tune` writes the tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

FORMAT = 1
_TIMES = "microseconds"
_DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class MeasuredCall:
    """One measured call and what served it, fastest first.

    Args:
        key: The operator's key fields.
        fastest_first: Measured backends by time.
    """

    key: Mapping[str, str | int | bool]
    fastest_first: tuple[str, ...]


@dataclass(frozen=True)
class MeasuredTable:
    """An operator's table: where it lies, what its rows hold, and how a call is looked up.

    Args:
        path: The shipped file.
        fields: Key fields and their types: str (a dtype's name), bool, or int (at least 1).
        size: The int field of which the nearest measured value, in ratio, serves; all others must match.
        backends: Backends that a row may name.
    """

    path: Path
    fields: Mapping[str, type]
    size: str
    backends: tuple[str, ...]

    @cached_property
    def calls(self) -> dict[str, tuple[MeasuredCall, ...]]:
        """The shipped measurements per GPU; read at the first use."""
        return self.parse(json.loads(self.path.read_text()), self.path.name)

    def parse(self, table: Any, source: str) -> dict[str, tuple[MeasuredCall, ...]]:
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
            calls[gpu] = tuple(self._parse_row(row, f"{source}: gpus[{gpu!r}][{i}]") for i, row in enumerate(rows))
        return calls

    def order(self, gpu: str, unmeasured: Sequence[str], **key: str | int | bool) -> tuple[str, ...]:
        """Return the backends of the nearest measured call, fastest first, then those that were not measured.

        Args:
            gpu: Name of the GPU.
            unmeasured: Order without measurements.
            **key: Every key field of the call.
        """
        nearest = self.nearest(self.calls.get(gpu, ()), **key)
        measured = () if nearest is None else nearest.fastest_first
        return (*measured, *(name for name in unmeasured if name not in measured))

    def nearest(self, calls: Sequence[MeasuredCall], **key: str | int | bool) -> MeasuredCall | None:
        """Return the call that agrees in all fields but `size`, and is nearest in that."""
        size = max(int(key[self.size]), 1)
        same = [call for call in calls if all(call.key[name] == key[name] for name in key if name != self.size)]
        return min(same, key=lambda call: abs(math.log(int(call.key[self.size]) / size)), default=None)

    def merged(self, table: Any, source: str, gpu: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a table with the rows of one GPU replaced; both are checked.

        Raises:
            ValueError: As for `parse`.
        """
        self.parse(table, source)
        merged = {"format": FORMAT, "gpus": {**table["gpus"], gpu: list(rows)}}
        self.parse(merged, source)
        return merged

    def _parse_row(self, row: Any, place: str) -> MeasuredCall:
        wanted = {*self.fields, _TIMES}
        if not isinstance(row, Mapping) or set(row) != wanted:
            raise ValueError(f"{place} must have the fields {', '.join(sorted(wanted))}; got {_shortened(row)}")
        for name, kind in self.fields.items():
            value = row[name]
            if kind is str and value not in _DTYPES:
                raise ValueError(f"{place}.{name} must be one of {', '.join(_DTYPES)}; got {value!r}")
            if kind is int and (type(value) is not int or value < 1):
                raise ValueError(f"{place}.{name} must be an integer >= 1; got {value!r}")
            if kind is bool and type(value) is not bool:
                raise ValueError(f"{place}.{name} must be true or false; got {value!r}")
        times = row[_TIMES]
        if not isinstance(times, Mapping) or not times or not set(times) <= set(self.backends):
            known = ", ".join(self.backends)
            raise ValueError(f"{place}.{_TIMES} must map some of {known} to times; got {_shortened(times)}")
        for name, time in times.items():
            if type(time) not in (int, float) or not 0 < time < math.inf:
                raise ValueError(f"{place}.{_TIMES}.{name} must be a finite number > 0; got {time!r}")
        fastest_first = tuple(sorted(times, key=lambda name: (times[name], name)))
        return MeasuredCall({name: row[name] for name in self.fields}, fastest_first)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
