"""A self-contained page of results: figures inside, one table per suite, what ran where, and what could not run."""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.figures import draw_all
from benchmarks.rows import OURS, Row, load_rows

TEMPLATE = "report.html.jinja"


def write_report(files: Sequence[Path], folder: Path) -> int:
    """Write `report.html` and the figures; return 2 where a file holds no rows."""
    try:
        rows = [row for file in files for row in load_rows(file)]
    except (OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    if not rows:
        print("benchmarks: the files hold no rows", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    figures = draw_all(rows, folder)
    (folder / "report.html").write_text(render(rows, figures))
    print(f"{folder / 'report.html'}: {len(rows)} rows, {len(figures)} figures")
    return 0


def render(rows: Sequence[Row], figures: Sequence[tuple[Path, str]]) -> str:
    """Return the page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = _number
    pictures = [{"data": base64.b64encode(path.read_bytes()).decode(), "caption": caption} for path, caption in figures]
    measured = [row for row in rows if row.median is not None]
    return environment.get_template(TEMPLATE).render(
        figures=pictures,
        suites=[(suite, list(its)) for suite, its in groupby(measured, key=lambda row: row.suite)],
        missing=[row for row in rows if row.median is None],
        machines=sorted({row.machine for row in rows}),
        commits=sorted({row.commit for row in rows}),
        versions=_versions(rows),
        losses=[row for row in measured if row.metric.startswith("speedup_vs:") and row.median < 1],  # type: ignore[operator]
        ours=OURS,
    )


def _versions(rows: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, set[str]] = {}
    for row in rows:
        for name, version in row.versions.items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(values)) for name, values in sorted(found.items())}


def _number(value: float) -> str:
    """Four digits, thousands grouped, no exponent where a person would not write one."""
    if value == 0:
        return "0"
    if abs(value) >= 1e7 or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
