"""Pictures of results: share of the machine's limit, speed-ups, scaling. Dark on white, readable without colour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rows import MACHINE, OURS, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

GAIN, LOSS, INK, FAINT = "#1b6ca8", "#c0392b", "#222222", "#999999"
CAPTIONS = {
    "speedup.png": "Speed-up of ours over each peer measured in the same run; left of 1 is a loss.",
    "roofline.png": "Rate of ours against the limits of the machine, measured in the same run; above the slope: from "
    "cache.",
    "scaling.png": "Cost per sample or evaluation of ours.",
}
_MARKERS = "osD^vP*X"
_WIDTH = 8.0
_POINT = re.compile(r"^(?P<curve>.+-cost-vs-(?P<axis>[a-z]+))-[a-z]+(?P<value>\d+)$")
_AXIS = {
    "samples": "samples per picture",
    "nfe": "evaluations per sample",
    "batch": "micro-batch",
    "threads": "threads",
    "resolution": "height and width of the picture, pixels",
}


def draw_all(rows: Sequence[Row], folder: Path) -> list[tuple[Path, str]]:
    """Write every figure that the rows allow; return its path and caption."""
    made = []
    figures = {"speedup.png": speedups, "roofline.png": roofline, "scaling.png": scaling}
    for name, draw in figures.items():
        figure = draw(rows)
        if figure is not None:
            figure.savefig(folder / name, dpi=150, bbox_inches="tight")
            made.append((folder / name, CAPTIONS[name]))
    return made


def speedups(rows: Sequence[Row]) -> Figure | None:
    """Horizontal bars on a logarithmic axis, one per job and peer, with the 20th to 80th percentile."""
    found = [row for row in rows if row.metric.startswith("speedup_vs:") and row.median is not None]
    found = [row for row in found if not row.metric.startswith(f"speedup_vs:{OURS}")]
    if not found:
        return None
    figure = _figure(1.0 + 0.24 * len(found))
    axes = figure.add_subplot()
    for position, row in enumerate(found):
        value, low, high = (float(number or 0) for number in (row.median, row.p20, row.p80))
        start, end = min(value, 1.0), max(value, 1.0)
        axes.barh(position, end - start, left=start, color=GAIN if value >= 1 else LOSS, height=0.66)
        axes.plot([low, high], [position, position], color=INK, linewidth=1.2)
        axes.annotate(f"{value:.3g}x", (max(end, high), position), xytext=(4, 0), textcoords="offset points",
                      va="center", fontsize=7)  # fmt: skip
    axes.set_xscale("log")
    low = min(float(row.median or 1) for row in found)
    high = max(float(row.p80 or 1) for row in found)
    axes.set_xlim(min(0.5, 0.7 * low), 3 * max(high, 1.0))
    axes.set_ylim(-0.7, len(found) - 0.3)
    _plain(axes.xaxis)
    axes.axvline(1.0, color=INK, linewidth=1)
    labels = [f"{row.job}  vs  {row.metric.partition(':')[2]}" for row in found]
    axes.set_yticks(range(len(found)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the peer")
    axes.grid(axis="x", color=FAINT, linewidth=0.4)
    axes.set_axisbelow(True)
    return figure


def roofline(rows: Sequence[Row]) -> Figure | None:
    """Achieved arithmetic rate against arithmetic per byte, under the measured roofs of all threads."""
    limits = [row for row in rows if row.variant == MACHINE and row.median is not None]
    by_metric = {row.metric: row for row in limits}  # the last: all threads
    points = _points(rows)
    if not points or "copy_bandwidth" not in by_metric:
        return None
    figure = _figure(5.2)
    axes = figure.add_subplot()
    bandwidth = float(by_metric["copy_bandwidth"].median or 0)
    intensities = [intensity for _, intensity, _ in points]
    left, right = min(intensities) / 3, max(intensities) * 3
    roofs = [(name, row) for name, row in by_metric.items() if name.startswith("matmul_")]
    for (name, row), style in zip(roofs, ("-", "--"), strict=False):
        peak = float(row.median or 0)
        knee = peak / bandwidth
        xs = [left, min(max(knee, left), right), right]
        axes.plot(xs, [min(peak, bandwidth * x) for x in xs], style, color=INK, linewidth=1.4,
                  label=f"{name.removeprefix('matmul_')}: {peak:.0f} GFLOP/s")  # fmt: skip
    for index, (job, intensity, rate) in enumerate(points):
        axes.plot(intensity, rate, _MARKERS[index % len(_MARKERS)], color=GAIN, markersize=6, label=job)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.set_xlabel(f"arithmetic per byte that must move, FLOP/byte (copy: {bandwidth:.1f} GB/s)")
    axes.set_ylabel("GFLOP/s")
    axes.grid(color=FAINT, linewidth=0.4)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def _points(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """(job, FLOP per byte, GFLOP/s) of ours, for jobs that state their arithmetic and traffic."""
    value = {(row.job, row.metric): row for row in rows if row.variant == OURS and row.median}
    points = []
    for (job, metric), row in value.items():
        time, traffic = value.get((job, "time")), value.get((job, "traffic"))
        if metric == "arithmetic" and time is not None and traffic is not None and row.median:
            seconds = float(time.median or 1) / {"us": 1e6, "ms": 1e3, "s": 1.0}[time.unit]
            points.append((job, row.median / float(traffic.median or 1), row.median / seconds / 1e9))
    return points


def scaling(rows: Sequence[Row]) -> Figure | None:
    """One panel per curve."""
    curves: dict[str, list[tuple[float, Row]]] = {}
    axis_of = {}
    for row in rows:
        found = _POINT.match(row.job)
        if found and row.median is not None and row.metric.startswith("cost_per_"):
            curves.setdefault(found["curve"], []).append((float(found["value"]), row))
            axis_of[found["curve"]] = found["axis"]
    if not curves:
        return None
    n_rows = (len(curves) + 1) // 2
    figure = _figure(2.3 * n_rows)
    for index, (curve, points) in enumerate(curves.items()):
        axes = figure.add_subplot(n_rows, 2, index + 1)
        _draw_curve(axes, curve, _AXIS.get(axis_of[curve], axis_of[curve]), sorted(points, key=lambda pair: pair[0]))
    figure.tight_layout()
    return figure


def _draw_curve(axes: Axes, curve: str, label: str, points: Sequence[tuple[float, Row]]) -> None:
    xs = [x for x, _ in points]
    medians, lows, highs = ([float(getattr(row, name)) for _, row in points] for name in ("median", "p20", "p80"))
    axes.plot(xs, medians, "o-", color=GAIN, markersize=4, linewidth=1.3)
    axes.fill_between(xs, lows, highs, color=GAIN, alpha=0.25, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [f"{x:g}" for x in xs], fontsize=7)
    axes.minorticks_off()
    if max(medians) > 4 * min(medians):
        axes.set_yscale("log")
        _plain(axes.yaxis)
    else:
        axes.set_ylim(0, 1.25 * max(highs))
    axes.set_title(curve, fontsize=8)
    axes.set_xlabel(label, fontsize=7)
    axes.set_ylabel(f"{points[0][1].unit} per {points[0][1].metric.removeprefix('cost_per_')}", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(color=FAINT, linewidth=0.4)


def _plain(axis: Axis) -> None:
    """Label a logarithmic axis 0.5, 1, 2, 5, 10 and so on, not with powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=24))
    axis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(labelsize=7)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), facecolor="white")
