"""What a study found: figures per arm and budget, comparisons, a table, a plot and one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from msf.pools.paired import Array, balanced_accuracy, compare, holm, interval
from msf.pools.study import ARMS, CLASSICAL, MIXED, REAL, SYNTHETIC

ALPHA = 0.05
_COLOURS = dict(zip(ARMS, ("tab:blue", "tab:orange", "tab:green", "tab:grey"), strict=True))


def summarise(rows: Sequence[dict[str, Any]], labels: Tensor, *, seed: int = 0) -> dict[str, Any]:
    """Return the figures of a study, JSON-ready.

    Args:
        rows: As `run_study` returns them.
        labels: Of the test pictures.
        seed: Of bootstrap and sign flips.

    Returns:
        `arms`: per arm and budget the balanced accuracy (mean over the seeds, with a 95 % interval over test pictures,
        and `by_seed`). `comparisons`: `real + synthetic` against `real` and against `real + classical augmentation` at
        every budget, with `p` and `p_holm`, adjusted for all of them. `verdict`: a sentence.
    """
    truth = labels.numpy()
    budgets = sorted({row["budget"] for row in rows if row["budget"] is not None})
    means = {}
    arms = []
    for arm in ARMS:
        for budget in [None] if arm == SYNTHETIC else budgets:
            own = [row for row in rows if row["arm"] == arm and row["budget"] == budget]
            each = np.array([list(map(int, row["correct"])) for row in own], np.float64)
            means[arm, budget] = each.mean(0)
            low, high = interval(means[arm, budget], truth, seed=seed)
            arms.append(
                {
                    "arm": arm,
                    "budget": budget,
                    "n_real": own[0]["n_real"],
                    "n_synthetic": own[0]["n_synthetic"],
                    "balanced_accuracy": balanced_accuracy(means[arm, budget], truth),
                    "low": low,
                    "high": high,
                    "by_seed": [balanced_accuracy(correct, truth) for correct in each],
                }
            )
    comparisons = _comparisons(means, budgets, truth, seed)
    return {
        "n_test": len(truth),
        "n_seeds": len({row["seed"] for row in rows}),
        "arms": arms,
        "comparisons": comparisons,
        "verdict": verdict(comparisons),
    }


def _comparisons(
    means: dict[tuple[str, int | None], Array], budgets: Sequence[int], truth: Any, seed: int
) -> list[dict[str, Any]]:
    pairs = [(budget, other) for budget in budgets for other in (REAL, CLASSICAL)]
    found = [compare(means[MIXED, budget], means[other, budget], truth, seed=seed) for budget, other in pairs]
    adjusted = holm([each.p for each in found])
    return [
        {"arm": MIXED, "against": other, "budget": budget, **asdict(each), "p_holm": p}
        for (budget, other), each, p in zip(pairs, found, adjusted, strict=True)
    ]


def verdict(comparisons: Sequence[dict[str, Any]]) -> str:
    """Return a sentence that says whether the generated pictures were worth it, against classical augmentation."""
    against = [row for row in comparisons if row["against"] == CLASSICAL]
    kinds: dict[str, list[str]] = {"better": [], "worse": [], "no different": []}
    for row in against:
        is_clear = row["p_holm"] <= ALPHA
        kind = "no different" if not is_clear else "better" if row["difference"] > 0 else "worse"
        kinds[kind].append(f"{row['budget']} ({100 * row['difference']:+.1f} points, p {row['p_holm']:.4f})")
    is_mixed = bool(kinds["better"]) and len(kinds["better"]) < len(against)
    worth = "worth it at some budgets only" if is_mixed else "worth it" if kinds["better"] else "not worth it"
    start = f"The synthetic pictures were {worth}"
    parts = {
        "better": "better than classical augmentation at {}",
        "worse": "worse at {}",
        "no different": "no difference was found at {}",
    }
    told = [text.format(", ".join(kinds[kind])) for kind, text in parts.items() if kinds[kind]]
    return f"{start}: {'; '.join(told)} real pictures per class."


def as_markdown(figures: dict[str, Any], title: str) -> str:
    """Return the figures as a page: the sentence, a table of arms and one of comparisons."""
    lines = [
        f"# {title}", "", figures["verdict"], "",
        f"Balanced accuracy on {figures['n_test']} test pictures, mean over seeds ({figures['n_seeds']}), with 95 % "
        "intervals over test pictures.", "",
        "| arm | real per class | real | synthetic | balanced accuracy | by seed |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in figures["arms"]:
        shown = f"{row['balanced_accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        each = ", ".join(f"{value:.3f}" for value in row["by_seed"])
        budget = "-" if row["budget"] is None else row["budget"]
        lines.append(f"| {row['arm']} | {budget} | {row['n_real']} | {row['n_synthetic']} | {shown} | {each} |")
    lines += [
        "", f"{MIXED} against the other arms, points of balanced accuracy; sign-flip test over test pictures, p "
        "adjusted for all comparisons (Holm).", "",
        "| real per class | against | difference | p | adjusted |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in figures["comparisons"]:
        shown = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        lines.append(f"| {row['budget']} | {row['against']} | {shown} | {row['p']:.4f} | {row['p_holm']:.4f} |")
    return "\n".join(lines) + "\n"


def study_figure(figures: dict[str, Any]) -> Figure:
    """Draw balanced accuracy over the label budget, one line per arm, with intervals."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, arm in enumerate(ARMS):
        rows = [row for row in figures["arms"] if row["arm"] == arm]
        middle, low, high = (np.array([row[name] for row in rows]) for name in ("balanced_accuracy", "low", "high"))
        if arm == SYNTHETIC:
            axes.axhline(middle[0], color=_COLOURS[arm], label=arm)
            axes.axhspan(low[0], high[0], color=_COLOURS[arm], alpha=0.15)
            continue
        budgets = np.array([row["budget"] for row in rows]) * 1.03 ** (number - 1)  # intervals beside each other
        axes.errorbar(
            budgets, middle, yerr=[middle - low, high - middle], color=_COLOURS[arm], marker="o", capsize=3, label=arm
        )
    axes.set_xscale("log")
    ticks = sorted({row["budget"] for row in figures["arms"] if row["budget"] is not None})
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    axes.set_xlabel("real labelled pictures per class")
    axes.set_ylabel("balanced accuracy on test")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure
