"""The page's figures: what refusing brings, and whether probabilities mean what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from msf.judge.risk_bands import RiskBand
from msf.report.drawing import ACCENT, BAD, FAINT, INK, as_svg, page_look

_PANEL_INCHES = (2.9, 2.2)
_LARGE_INCHES = (3.9, 3.4)
_FIRST_COVERAGE = 0.1  # below that a curve is the luck of a few pictures, and its band reaches everywhere


def risk_panels(bands: Mapping[str, RiskBand], error_rate: float) -> dict[str, Markup]:
    """Return one figure per score: its curve with its band, before the curves of the others.

    All have the same axes.

    Args:
        bands: Score to its curve.
        error_rate: Of all pictures, where every curve ends.
    """
    top = 1.15 * max([error_rate, *(float(band.high[_shown(band)].max()) for band in bands.values()), 0.01])
    return {name: _risk_panel(name, bands, error_rate, min(top, 1.0)) for name in bands}


def _shown(band: RiskBand) -> slice:
    return slice(int((band.coverage < _FIRST_COVERAGE - 1e-9).sum()), None)


def _risk_panel(name: str, bands: Mapping[str, RiskBand], error_rate: float, top: float) -> Markup:
    with page_look():
        figure = Figure(figsize=_PANEL_INCHES, layout="constrained")
        axes = figure.subplots()
        for other, band in bands.items():
            part = _shown(band)
            if other != name:
                axes.plot(band.coverage[part], band.risk[part], color=FAINT, linewidth=0.8)
        band, part = bands[name], _shown(bands[name])
        axes.fill_between(band.coverage[part], band.low[part], band.high[part], color=ACCENT, alpha=0.22, linewidth=0)
        axes.plot(band.coverage[part], band.risk[part], color=ACCENT, linewidth=1.8)
        axes.axhline(error_rate, color=INK, linestyle=":", linewidth=0.8)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, top)
        axes.set_xlabel("coverage (share kept)")
        axes.set_ylabel("risk (error rate)")
    half, tenth = band.at(0.5), band.at(_FIRST_COVERAGE)
    return as_svg(
        figure,
        f"risk-{name.replace('_', '-')}",
        f"Error rate against the share of pictures kept, ranked by {name}: {error_rate:.3f} for all, {half[0]:.3f} for "
        f"the surest half ({half[1]:.3f} to {half[2]:.3f}), {tenth[0]:.3f} for the surest tenth.",
    )


def reliability_figure(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Return how often predictions were right against how sure they were, above how many there are of each.

    Args:
        bins: As `Findings.bins`.
    """
    with page_look():
        figure = Figure(figsize=_LARGE_INCHES, layout="constrained")
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        middles = [(each["low"] + each["high"]) / 2 for each in bins]
        widths = [(each["high"] - each["low"]) * 0.9 for each in bins]
        axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=0.8)
        axes.vlines(
            [each["confidence"] for each in bins],
            [each["accuracy_low"] for each in bins],
            [each["accuracy_high"] for each in bins],
            color=FAINT,
            linewidth=1.2,
        )
        for each in bins:
            is_too_sure = each["accuracy_high"] < each["confidence"]
            mark, colour = ("v", BAD) if is_too_sure else ("o", ACCENT)
            axes.plot(each["confidence"], each["accuracy"], mark, markersize=5, color=colour)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("accuracy")
        counts.bar(middles, [each["n"] for each in bins], width=widths, color=FAINT)
        counts.set_ylabel("pictures")
        counts.set_xlabel("largest probability")
    spoken = "; ".join("sure of {confidence:.2f}, right in {accuracy:.2f} of {n}".format(**each) for each in bins)
    return as_svg(figure, "reliability", f"Accuracy against the largest probability, in bins. {spoken}.")
