"""Which stored values become black and which white, where a file holds more of them than a screen shows."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

Levels = np.ndarray[Any, np.dtype[np.float64]]
VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]
Window = tuple[float, float] | Literal["auto", "none"]
"""Centre and width; or `auto`: what the file says, else its smallest and largest value; or `none`: the whole range."""


def parse_window(text: str | None) -> Window | None:
    """Return the window that a flag means: `CENTRE,WIDTH`, `auto` or `none`; None where it was not given.

    Raises:
        ValueError: Anything else, numbers that are not finite, or a width below 1.
    """
    if text is None or text in ("auto", "none"):
        return text  # type: ignore[return-value]
    try:
        centre, width = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"window must be CENTRE,WIDTH, auto or none; got {text!r}") from None
    if not (math.isfinite(centre) and math.isfinite(width) and width >= 1):
        raise ValueError(f"window must have a finite centre and a width >= 1; got {text!r}")
    return centre, width


def apply_window(values: Levels, centre: float, width: float, function: VoiFunction = "LINEAR") -> Levels:
    """Return values in [0, 1]: 0 below the window, 1 above it.

    Args:
        values: Of any shape.
        centre: Of the window, in units of the values.
        width: Of the window, in the same units; >= 1 for `LINEAR`, else > 0.
        function: How values inside become shades.

    Raises:
        ValueError: A width that the function does not take.

    Source:
        DICOM PS3.3, C.11.2.1.2 and C.11.2.1.3. `LINEAR` is meant for whole numbers: both ends of the window are
        levels, so that it spans width - 1.
    """
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError(f"a window of width {width:g} shows nothing")
    if function == "SIGMOID":
        shades: Levels = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
        return shades
    offset, span = (0.5, width - 1) if function == "LINEAR" else (0.0, width)
    if span == 0:
        return (values > centre - offset).astype(np.float64)
    return np.clip((values - (centre - offset)) / span + 0.5, 0, 1)


def spread(values: Levels, low: float, high: float) -> Levels:
    """Return values in [0, 1], with `low` as black and `high` as white; all black where these are the same."""
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)
