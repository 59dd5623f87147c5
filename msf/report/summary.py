"""The page that ties a run's numbers and pictures together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from msf.files.atomic import write_atomically

FIGURES = (
    "accuracy", "balanced_accuracy", "auc_macro_ovr", "auc_medmnist", "auc_macro_ovr_of_probability",
    "auc_medmnist_of_probability", "nll", "brier", "ece", "aurc", "e_aurc", "augrc",
)  # fmt: skip


def write_summary(
    path: str | os.PathLike[str],
    *,
    title: str,
    about: str,
    facts: Mapping[str, object],
    metrics: Mapping[str, Any],
    remarks: Sequence[str],
    pictures: Mapping[str, str],
) -> None:
    """Write a Markdown page.

    Args:
        path: File to write, as a whole or not at all.
        title: Heading.
        about: One paragraph: what was done, on which data.
        facts: Rows of the first table.
        metrics: What `msf.evaluate.evaluate` returned.
        remarks: Sentences under the table of figures.
        pictures: File name, relative to the page, to caption.
    """
    environment = Environment(
        loader=PackageLoader("msf.report", "."), undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True
    )
    page = environment.get_template("summary.md.jinja").render(
        title=title,
        about=about,
        facts=facts,
        metrics=metrics,
        split=metrics["split"],
        figures=FIGURES,
        remarks=remarks,
        pictures=pictures,
        number=_number,
    )
    write_atomically(path, lambda temporary: Path(temporary).write_text(page, encoding="utf-8"))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
