"""Curves of selective prediction."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure


def risk_coverage_figure(scores: Mapping[str, Mapping[str, object]], accuracy: float) -> Figure:
    """Draw the error rate among the kept pictures against their share, one curve per uncertainty score.

    The axis ends at three times the error rate without referral: the first few pictures of a ranking can hold an error
    by chance, and their error rate would flatten everything else.

    Args:
        scores: Score name to a mapping with `aurc` and `selective: {coverage, risk}`.
        accuracy: Accuracy on all pictures; its error rate is where every curve ends.
    """
    figure = Figure(figsize=(6.4, 4.4))
    axes = figure.subplots()
    for name, numbers in scores.items():
        curve: Mapping[str, list[float]] = numbers["selective"]  # type: ignore[assignment]
        axes.plot(curve["coverage"], curve["risk"], label=f"{name} (AURC {numbers['aurc']:.3f})", linewidth=1.4)
    axes.axhline(1 - accuracy, color="grey", linestyle=":", linewidth=1, label="error rate without referral")
    axes.set_xlabel("coverage: share of the pictures that are kept")
    axes.set_ylabel("selective risk: error rate among them")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, min(1.0, max(3 * (1 - accuracy), 0.01)))
    axes.legend(fontsize=7)
    figure.tight_layout()
    return figure
