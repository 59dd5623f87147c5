"""What the commands print: progress on a terminal, results, one-line errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from msf.files.atomic import write_atomically

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

Advance = Callable[..., None]


@contextmanager
def progress_bar(description: str) -> Iterator[Advance]:
    """Show a bar on a terminal, nothing in a pipe.

    Yields:
        `advance(done, total, note="")`.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(description, total=None, note="")
        yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)


def print_figures(title: str, figures: Mapping[str, Any]) -> None:
    """Print names and values as two columns."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    out.print(table)


def write_json(path: Path | None, content: Any) -> None:
    """Write a result as JSON, as a whole or not at all; nothing where no path was given."""
    if path is not None:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
