"""Figures and pictures as text that stands in a page: lines in the page's own colours, pictures as they are."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

# Colours that stand for those of the page, which differ by day and by night.
INK, ACCENT, FAINT, BAD = "#010101", "#020202", "#030303", "#040404"
_PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", FAINT: "var(--faint)", BAD: "var(--bad)"}
_LOOK: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "page",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def page_look() -> Iterator[None]:
    """Let figures that are made and written in this context look like the page around them."""
    with matplotlib.rc_context(_LOOK):
        yield


def as_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return a figure as SVG inside HTML, in the page's colours.

    Args:
        figure: Made within `page_look`, in the colours of this module.
        name: Distinguishes it from the page's other figures; letters, digits and hyphens.
        description: What it shows, for who cannot see it.
    """
    file = io.StringIO()
    with page_look():
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    # Names count in the whole page: those that are used get the figure's own, the others go.
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'((?:href="|url\()#)', rf"\g<1>{name}-", text)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1))


def picture_uri(picture: np.ndarray[Any, np.dtype[np.uint8]], most_pixels: int) -> str:
    """Return a picture as the address of itself, at most so many pixels wide and high.

    Args:
        picture: uint8 [H, W, C], C is 1 or 3.
        most_pixels: Along a side; a larger picture is made smaller.
    """
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    image.thumbnail((most_pixels, most_pixels))
    file = io.BytesIO()
    image.save(file, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
