"""The compilations as a table: one line per kernel and architecture, the worst of its configurations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from msf_kernels._aot.compilation import Compilation

HEADER = (
    "source",
    "kernel",
    "arch",
    "compilations",
    "registers",
    "spilled bytes",
    "local bytes",
    "shared bytes",
    "tensor cores",
    "verdict",
)


def table_rows(compilations: Iterable[Compilation]) -> list[tuple[str, ...]]:
    """Return one row per kernel and architecture, in the order of `HEADER`."""
    groups: dict[tuple[str, str, str], list[Compilation]] = defaultdict(list)
    for compilation in compilations:
        groups[compilation.source, compilation.kernel, compilation.arch].append(compilation)
    return [(*key, str(len(group)), *_summary(group)) for key, group in groups.items()]


def markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEADER, tuple("---" for _ in HEADER), *(_escaped(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plain(rows: Sequence[tuple[str, ...]]) -> str:
    """Return the rows in columns for a terminal."""
    lines = [HEADER, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(text.rstrip() for text in texts)


def _summary(group: Sequence[Compilation]) -> tuple[str, ...]:
    families = sorted({family for compilation in group for family in compilation.families})
    n_bad = sum(bool(compilation.problems) for compilation in group)
    return (
        _range([compilation.registers for compilation in group]),
        _range([compilation.spill_bytes for compilation in group]),
        _range([compilation.local_bytes for compilation in group]),
        _range([compilation.shared_bytes for compilation in group]),
        ", ".join(families) or "-",
        f"{n_bad} FAILED" if n_bad else "ok",
    )


def _range(numbers: Sequence[int | None]) -> str:
    known = [number for number in numbers if number is not None]
    if not known:
        return "-"
    return str(known[0]) if min(known) == max(known) else f"{min(known)} to {max(known)}"


def _escaped(row: tuple[str, ...]) -> tuple[str, ...]:
    source, kernel, *rest = row
    return (source, f"`{kernel}`", *rest)
