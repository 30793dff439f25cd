"""How a figure looks and how it is written: as SVG for a page, as PNG for everything else.

Every figure is a `Figure` of its own: nothing is registered with pyplot, no setting outlives a call. What is text or
axis has the one colour `INK`, which an inlined SVG takes from the page around it.
"""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from hashlib import sha256
from html import escape
from io import BytesIO, StringIO
from math import isfinite
from typing import Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimdown.stats.paired import Estimate

INK = "#010203"  # black to the eye, and no other thing in a figure has it: `svg` can replace it
HINT = "hint:"  # the id of an artist that begins so goes on with what an SVG shows when it is pointed at
WIDTH = 6.4  # inches
DARK, LIGHT = "#14181c", "#ffffff"  # text on a coloured ground, which no page changes
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a figure is laid out alike everywhere
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and copied
    "svg.hashsalt": "slimdown",  # the same figure gives the same bytes
}


_Arguments = ParamSpec("_Arguments")


def styled(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, Figure]:
    """The same function, drawing with our settings and leaving matplotlib's as they were."""

    @wraps(draw)
    def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapped


def new_figure(height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.set_label(title)
    return figure, figure.add_subplot()


def say(axes: Axes, text: str) -> Figure:
    """The figure with a sentence in place of a plot that would be empty."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes)
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def arms(estimates: Sequence[Estimate]) -> list[list[float]]:
    """How far the error bars reach below and above, in points; 0 where the interval is undefined."""
    below = [100 * (e.value - e.low) for e in estimates]
    above = [100 * (e.high - e.value) for e in estimates]
    return [[max(0.0, arm) if isfinite(arm) else 0.0 for arm in arms] for arms in (below, above)]


def svg(figure: Figure) -> str:
    """The figure as an SVG element to put into a page: transparent, its text and axes in the page's text colour.

    The same figure always gives the same text, and the ids of two different figures never meet.
    """
    out = StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # matplotlib's one rule is for every element there is; inside a page that would be the page's too
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace(
        "'DejaVu Sans'", "system-ui, 'Segoe UI', 'DejaVu Sans'"
    )
    hinted = rf"""<g id=(["']){HINT}(.*?)\1>"""
    text = re.sub(hinted, r'<g pointer-events="all"><title>\2</title>', text, flags=re.DOTALL)
    text = _own_ids(text)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None  # matplotlib writes one
    title = escape(str(figure.get_label()) or "figure")
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]} role="img" '
        f'style="stroke-linejoin: round; stroke-linecap: butt"><title>{title}</title>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, text, count=1).strip()


def png(figure: Figure) -> bytes:
    """The figure as a PNG on white, 150 dots an inch."""
    out = BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def _own_ids(text: str) -> str:
    """Only ids that something refers to, each with a prefix that no other figure has."""
    prefix = f"f{sha256(text.encode()).hexdigest()[:8]}-"
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    return re.sub(r'(href="#|url\(#)', lambda m: m[1] + prefix, text)
