"""The page of a run: one HTML file that holds all it shows and asks nothing of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from msf.judge.resampling import LEVEL
from msf.precision.processor import this_processor
from msf.report.charts import reliability_figure, risk_panels
from msf.report.drawing import picture_uri
from msf.report.figures import as_pixels
from msf.report.findings import N_RESAMPLES, Findings
from msf.report.words import SOURCES, percent, summary

N_ERRORS = 12
N_UNCERTAIN = 12
MOST_PIXELS = 128  # of a picture on the page, along a side
_MOST_BARS = 6
_HEADLINES = ("accuracy", "balanced_accuracy", "auc_macro_ovr", "auc_macro_ovr_of_probability", "nll", "brier", "ece")


def report_page(findings: Findings) -> str:
    """Return the page: figures, pictures and sentences on one classified split.

    Every score and number that the prediction and its metrics have is shown, under its own name.

    Args:
        findings: What there is to show.
    """
    environment = Environment(
        loader=PackageLoader("msf.report", "."),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["breakable"] = breakable
    return environment.get_template("page.html.jinja").render(
        findings=findings,
        metrics=findings.metrics,
        names=findings.dataset.class_names,
        sentences=list(summary(findings)),
        headlines=_headlines(findings),
        level=percent(LEVEL, 0),
        n_resamples=N_RESAMPLES,
        panels=risk_panels(findings.bands, findings.error_rate),
        scores=_score_table(findings),
        reliability=reliability_figure(findings.bins),
        errors=[_card(findings, row) for row in findings.certain_errors[:N_ERRORS]],
        n_errors=len(findings.certain_errors),
        source=SOURCES[findings.prediction.probability_source == "mean_code"],
        uncertain=[_card(findings, row) for row in findings.uncertain[:N_UNCERTAIN]],
        generated=_generated(findings),
        cost=_cost(findings),
        made_with=list(flat({**findings.source, **findings.made_with})),
        figures=[(name, value) for name, value in flat(findings.metrics) if isinstance(value, int | float)],
    )


def number(value: Any) -> str:
    """Return a value as the page shows it; what is undefined is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:.3g}"


def breakable(name: str) -> Markup:
    """Return a name that may be parted behind its underscores."""
    return Markup("_<wbr>").join(name.split("_"))


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Yield the single values of nested mappings, with their path as a name; lists are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name} ")
        elif not isinstance(value, list | tuple):
            yield f"{prefix}{name}", value


def _headlines(findings: Findings) -> list[dict[str, Any]]:
    intervals = findings.intervals["overall"]
    unknown = {"low": None, "high": None}
    return [{"name": name, **intervals.get(name, unknown), "value": findings.metrics[name]} for name in _HEADLINES]


def _score_table(findings: Findings) -> dict[str, Any]:
    """Return a row per score, the best first, with a column for every number that they have, and its interval."""
    rows, intervals = {}, findings.intervals["score_intervals"]
    for name, given in findings.metrics["scores"].items():
        numbers = {key: value for key, value in flat(given) if value is None or _is_number(value)}
        unknown = {"low": None, "high": None}
        rows[name] = {key: {**intervals[name].get(key, unknown), "value": value} for key, value in numbers.items()}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    ordered = sorted(rows.items(), key=lambda item: item[1]["aurc"]["value"])
    return {"columns": columns, "rows": ordered}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _card(findings: Findings, row: int) -> dict[str, Any]:
    """Return what is shown of one picture."""
    prediction, names = findings.prediction, findings.dataset.class_names
    picture = findings.dataset.split(findings.split).images[row].numpy()
    label, true = int(prediction.label[row]), int(findings.labels[row])
    probability, votes = prediction.probability[row].tolist(), prediction.votes[row].tolist()
    order = sorted(range(len(names)), key=lambda k: (-max(probability[k], votes[k]), k))
    shown = sorted({*order[:_MOST_BARS], label, true}, key=order.index)
    return {
        "row": row,
        "uri": picture_uri(picture, MOST_PIXELS),
        "size": f"{picture.shape[1]} × {picture.shape[0]}",
        "label": names[label],
        "true": names[true],
        "is_right": label == true,
        "score": float(prediction.scores()[findings.score][row]),
        "n_draws": int(torch.as_tensor(prediction.n_samples).expand(len(prediction))[row]),
        "bars": [(names[k], votes[k], probability[k]) for k in shown],
        "n_more": len(names) - len(shown),
    }


def _generated(findings: Findings) -> list[dict[str, Any]]:
    """Return, per class, the addresses of real and of generated pictures."""
    split = findings.dataset.split(findings.split)
    rows = []
    for name, pictures in findings.generated.items():
        chosen = split.images[split.labels == findings.dataset.class_names.index(name)][: len(pictures)]
        rows.append({"name": name, "real": _uris(chosen.numpy()), "generated": _uris(as_pixels(pictures))})
    return rows


def _uris(pictures: Iterable[Any]) -> list[str]:
    return [picture_uri(picture, MOST_PIXELS) for picture in pictures]


def _cost(findings: Findings) -> list[tuple[str, str]]:
    metrics, n = findings.metrics, len(findings.labels)
    per_decision = float(metrics["seconds"]) / n
    device = str(findings.made_with["device"])
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else this_processor().name
    return [
        ("evaluations of the network per decision", number(metrics["mean_n_samples"] * metrics["nfe"])),
        ("noise draws per decision", number(metrics["mean_n_samples"])),
        ("evaluations per draw", number(metrics["nfe"])),
        ("time per decision", f"{1000 * per_decision:.3g} ms"),
        ("decisions per second", f"{1 / per_decision:.3g}"),
        ("processor", f"{where}, {torch.get_num_threads()} thread(s)"),
        ("arithmetic", f"{metrics['precision']}, convolutions by {metrics['convolution']}"),
    ]
