"""The page's sentences: what the figures say, for who does not read figures."""

from __future__ import annotations

from collections.abc import Iterator

from msf.judge.metrics import PUBLISHED_SCORE
from msf.judge.resampling import LEVEL
from msf.report.findings import Findings

_OF_SPLIT = {
    "train": "The network was trained on these pictures: the figures say nothing about new ones.",
    "val": "Training chose its best epoch on these pictures: the figures are somewhat too good.",
    "test": "These pictures took no part in the training.",
}
_FOREIGN = "These are other data than those that the network was trained with."
_REFERRED = (0.1, 0.3, 0.5)
_HALF, _TENTH = 0.5, 0.1
_FEW_ERRORS = 10
SOURCES = ("votes of the draws", "read from the mean code")
"""What probabilities are, and what they are where their source is `mean_code`."""


def summary(findings: Findings) -> Iterator[str]:
    """Yield what a reader should know first, a sentence or two at a time."""
    error, n = findings.error_rate, len(findings.labels)
    overall = findings.intervals["overall"]["accuracy"]
    name, share = findings.most_frequent
    yield (
        f"{n} pictures of {findings.dataset.name} (split {findings.split}) were put into {findings.dataset.n_classes} "
        f"classes. {_FOREIGN if findings.is_foreign else _OF_SPLIT[findings.split]}"
    )
    yield (
        f"The class is right for {percent(1 - error)} of them{_between(overall['low'], overall['high'])}. "
        f"Always saying “{name}” would be right for {percent(share)}."
    )
    yield from _about_referral(findings)
    yield from _about_probability(findings)
    n_errors = round(error * n)
    if 0 < n_errors < _FEW_ERRORS:
        yield f"There are only {n_errors} errors: what ranks them, and every figure about them, rests on few pictures."
    yield (
        "Thresholds that are read from these curves fit these pictures and promise nothing about the next. This page "
        "is no ground for clinical use."
    )


def _about_referral(findings: Findings) -> Iterator[str]:
    error, name = findings.error_rate, findings.score
    if error == 0:
        yield "There is no error, so nothing tells which uncertainty score would find one."
        return
    band = findings.bands.get(name)
    if band is None:
        yield f"The score {name} is the same for all pictures: it cannot say which of them a person should see."
        return
    parts = [f"{percent(band.at(1 - share)[0])} where {percent(share, 0)} are referred" for share in _REFERRED]
    yield (
        f"If a person looks at the pictures that are most uncertain by {name}, the error rate among the others is "
        f"{', '.join(parts[:-1])} and {parts[-1]}, instead of {percent(error)}."
    )
    half, tenth = band.at(_HALF)[0], band.at(_TENTH)
    if tenth[0] <= half:
        yield f"It keeps falling beyond half: {percent(tenth[0])} among the surest tenth."
    else:
        yield (
            f"It does not keep falling beyond half: among the surest tenth it is {percent(tenth[0])}"
            f"{_between(tenth[1], tenth[2])}, so that refusing more than half by this score gains nothing here."
        )
    best = min(findings.bands, key=lambda each: float(findings.metrics["scores"][each]["aurc"]))
    aurc = {each: findings.metrics["scores"][each]["aurc"] for each in (best, PUBLISHED_SCORE)}
    if best != PUBLISHED_SCORE:
        yield (
            f"The score that ranks the errors best here is {best} (AURC {aurc[best]:.4f}); the published one, "
            f"{PUBLISHED_SCORE}, has {aurc[PUBLISHED_SCORE]:.4f}. Chosen with the labels at hand: choose on val."
        )
    else:
        yield f"The score that ranks the errors best here is the published one, {best} (AURC {aurc[best]:.4f})."


def _about_probability(findings: Findings) -> Iterator[str]:
    bins = findings.bins
    gap = sum(each["n"] * (each["confidence"] - each["accuracy"]) for each in bins) / sum(each["n"] for each in bins)
    what = SOURCES[findings.prediction.probability_source == "mean_code"]
    if abs(gap) < 0.005:
        verdict = "on average they are as sure as they are right"
    else:
        verdict = f"on average they are {percent(abs(gap))} too {'sure' if gap > 0 else 'doubtful'}"
    yield (
        f"Probabilities ({what}) miss by {percent(findings.metrics['ece'])} (expected calibration error; 0 is "
        f"perfect); {verdict}."
    )


def percent(value: float, digits: int = 1) -> str:
    """Return a share as a person writes it."""
    return f"{100 * value:.{digits}f}\u00a0%"


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({percent(LEVEL, 0)} interval: {percent(low)} to {percent(high)})"
