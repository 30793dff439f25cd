"""Draw figures of one run and of many runs with matplotlib, as SVG.

Every figure is an object of its own: nothing is registered with pyplot, no setting outlives a call.
Text and axes have the one color `INK`, which an inlined SVG takes from the page around it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from math import isfinite
from typing import Any
from unittest.mock import patch

from slimdown.comparison.run_comparison import Configuration
from slimdown.judging.findings import Findings
from slimdown.report.formatting import format_number, visible
from slimdown.report.verdict_styles import find_style
from slimdown.stats.estimates import Estimate

# matplotlib raises at import where MPLBACKEND names no backend, and nothing here uses one:
# https://github.com/matplotlib/matplotlib/blob/v3.10.0/lib/matplotlib/__init__.py#L1316
with patch.dict(os.environ):
    os.environ.pop("MPLBACKEND", None)
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

INK = "#010203"  # black to the eye, and nothing else in a figure has it: `write_svg` replaces it
WIDTH, PHONE_WIDTH = 8.0, 3.9  # inches
MAX_POINTS = 40  # in one figure: more are not legible
_COLORS = ("#2a86c7", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8c8c8c")
_INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
_STYLE: dict[Any, Any] = dict.fromkeys(_INKED, INK) | {
    "font.family": "DejaVu Sans",  # comes with matplotlib: a figure is laid out alike everywhere
    "font.size": 8.5,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and copied
}


@matplotlib.rc_context(_STYLE)
def draw_changes(findings: Findings, width: float = WIDTH) -> Figure:
    """Draw each benchmark's change with the verdict's interval, the margin, the verdict, and n."""
    title = (
        f"Change of each benchmark{', for a phone' if width < WIDTH else ''}"  # its ids go by it
    )
    figure, axes = _new_figure(1.0 + 0.36 * len(findings.benchmarks), title, width)
    for row, benchmark in enumerate(findings.benchmarks.values()):
        d, margin = benchmark.shown_change, 100 * benchmark.margin
        shown = find_style(benchmark.verdict)
        band = Rectangle((-margin, row - 0.5), 2 * margin, 1, color=INK, alpha=0.08, linewidth=0)
        axes.add_patch(band)
        axes.plot([100 * d.low, 100 * d.high], [row, row], color=shown.color, linewidth=2)
        axes.plot([100 * d.value], [row], marker=shown.marker, color=shown.color, markersize=7)
        style: dict[str, Any] = {"color": shown.color, "weight": "bold", "va": "center"}
        if width == WIDTH:  # on a phone the color and the table say it
            axes.text(1.02, row, benchmark.verdict, transform=axes.get_yaxis_transform(), **style)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_ylim(len(findings.benchmarks) - 0.5, -0.5)
    longest = 30 if width == WIDTH else 18
    names = [f"{_cut(name, longest)}\nn = {b.n:,}" for name, b in findings.benchmarks.items()]
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(_format_signed)
    axes.set_xlabel("change, points (band: the margin)")
    return figure


@matplotlib.rc_context(_STYLE)
def draw_trade_offs(rows: Sequence[Configuration]) -> Figure:
    """Draw what each row learned against what it forgot; the Pareto front is joined and filled.

    The points are numbered, and their names stand in a key below.
    """
    shown = [r for r in rows if isfinite(r.target.value) and isfinite(r.retained.value)]
    shown = shown[:MAX_POINTS]
    names = [f"{i}  {_cut(f'{row.name} ({row.ids})', 100)}" for i, row in enumerate(shown, 1)]
    title = "What was learned against what was forgotten"
    figure, axes = _new_figure(3.6 + 0.15 * len(shown), title)
    # rounded, so that values are equal that differ only by rounding
    at = [(round(-100 * r.retained.value, 9), round(100 * r.target.value, 9)) for r in shown]
    better = {p: [q for q in at if q != p and q[0] <= p[0] and q[1] >= p[1]] for p in at}
    front = sorted(point for point in better if not better[point])
    if front:
        axes.plot(*zip(*front, strict=True), color=_COLORS[0], linestyle="--", zorder=1)
    for number, (row, point) in enumerate(zip(shown, at, strict=True), 1):
        color, fill = ((_COLORS[0],) * 2) if point in front else (_COLORS[5], "none")
        right, up = _measure_arms([row.retained])[::-1], _measure_arms([row.target])
        axes.errorbar(*point, up, right, fmt="none", ecolor=(color, 0.4), elinewidth=1)
        axes.plot(*point, color=color, marker="o", markersize=7, markerfacecolor=fill)
        axes.annotate(str(number), point, (5, 5), textcoords="offset points")
    axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.set_xlabel("forgotten: mean fall of the retained benchmarks, points (95 % interval)")
    axes.set_ylabel("learned: mean rise of the targets, points")
    blue = Line2D([], [], color=_COLORS[0], marker="o", ls="--", label="not beaten on both")
    gray = Line2D([], [], color=_COLORS[5], marker="o", ls="", mfc="none", label="others")
    figure.legend(handles=[blue, gray], loc="outside upper center", ncols=2)
    figure.supxlabel("\n".join(names), x=0.08, ha="left", size=8)
    return figure


@matplotlib.rc_context(_STYLE)
def draw_by_setting(
    setting: str, series: Mapping[str, Sequence[tuple[float | str, Estimate]]]
) -> Figure:
    """Draw each benchmark's change against a setting, with 95 % intervals.

    The axis has numbers if every value is a number; it is logarithmic if they grow by factors.

    Args:
        setting: Its dotted key.
        series: By benchmark, the setting's values and the mean change at each, a share of 1.
    """
    figure, axes = _new_figure(3.2 + 0.16 * len(series), f"Change by {setting}")
    values = list(dict.fromkeys(value for points in series.values() for value, _ in points))
    numbers = sorted(value for value in values if not isinstance(value, str))
    is_numeric = len(numbers) == len(values)
    for i, (name, points) in enumerate(series.items()):
        # points of a category stand side by side; on an axis of numbers that would be wrong
        shift = 0.3 * ((i + 0.5) / len(series) - 0.5)
        places: list[Any] = [v if is_numeric else values.index(v) + shift for v, _ in points]
        changes = [estimate for _, estimate in points]
        line = "-" if is_numeric else "none"
        style: dict[str, Any] = {"marker": "os^DvP"[i % 6], "linestyle": line, "capsize": 2.5}
        style |= {"color": _COLORS[i % 6], "elinewidth": 1, "label": _cut(name, 40)}
        axes.errorbar(places, [100 * c.value for c in changes], _measure_arms(changes), **style)
    if is_numeric and numbers:
        by_factors = numbers[0] > 0 and numbers[-1] >= 8 * numbers[0]
        axes.set_xscale("log" if by_factors else "linear")
        axes.set_xticks(numbers, [f"{n:g}" for n in numbers])
        axes.set_xticks([], minor=True)
    else:
        axes.set_xticks(range(len(values)), [_cut(str(v), 24) for v in values])
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.yaxis.set_major_formatter(_format_signed)
    axes.set_xlabel(_cut(setting, 60))
    axes.set_ylabel("change, points (95 % interval)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def write_svg(figure: Figure) -> str:
    """Write a figure as an SVG element for a page: transparent, in the page's text color.

    The same figure gives the same text, and ids of two figures never collide.
    """
    out = StringIO()
    salt = {"svg.hashsalt": figure.get_label()}  # of ids; the same figure gives the same bytes
    with matplotlib.rc_context(_STYLE | salt):
        none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=none)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # its one style rule would hold for the whole page
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    # keep only ids that something refers to; the salt makes these unique to this figure
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'\1 role="img"><title>{escape(str(figure.get_label()))}</title>'
    )
    return re.sub(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', opening, svg, count=1).strip()


def _new_figure(height: float, title: str, width: float = WIDTH) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_label(title)
    return figure, figure.add_subplot()


def _measure_arms(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Measure error bars below and above in points; 0 where the interval is undefined."""
    below = [100 * (e.value - max(e.low, -1.0)) for e in estimates]
    above = [100 * (min(e.high, 1.0) - e.value) for e in estimates]
    return [[max(0.0, a) if isfinite(a) else 0.0 for a in arms] for arms in (below, above)]


def _cut(name: str, width: int) -> str:
    name = visible(name)  # matplotlib warns of a control character, and writes it to the terminal
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _format_signed(value: float, _: object) -> str:
    return "0" if value == 0 else format_number(value, "+g")
