"""Figures of one run and of many runs, drawn with matplotlib, written as SVG or PNG.

Every figure is an object of its own: nothing is registered with pyplot, no setting outlives a call.
Text and axes have the one color `INK`, which an inlined SVG takes from the page around it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from io import BytesIO, StringIO
from math import isfinite
from typing import TYPE_CHECKING, Any

from slimdown.report.formatting import format_count, format_number, format_points
from slimdown.report.looks import get_look


@contextmanager
def _hide_backend() -> Iterator[None]:
    """Hides MPLBACKEND: matplotlib raises at import where it names no backend, and we use none.

    https://github.com/matplotlib/matplotlib/blob/v3.10.0/lib/matplotlib/__init__.py#L1316
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


with _hide_backend():
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

if TYPE_CHECKING:
    from slimdown.stats.estimates import Estimate
    from slimdown.stats.findings import Findings
    from slimdown.stats.run_comparison import Configuration
    from slimdown.training.result import StepLog

INK = "#010203"  # black to the eye, and nothing else in a figure has it: `write_svg` replaces it
TOOLTIP = "tooltip:"  # begins the id of an artist whose rest an SVG shows under the pointer
WIDTH = 6.4  # inches
MAX_POINTS = 40  # of runs in one figure: more are not legible
_COLORS = ("#2a86c7", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8c8c8c")
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: a figure is laid out alike everywhere
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is no formula
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be read out, searched and copied
}


@matplotlib.rc_context(_STYLE)
def draw_changes(findings: "Findings") -> Figure:
    """Each benchmark's change with its 95 % interval, the margin, the verdict, and n."""
    figure, axes = _new_figure(1.0 + 0.36 * len(findings.benchmarks), "Change of each benchmark")
    n_offset = 150 if any(b.is_stopped for b in findings.benchmarks.values()) else 110
    for row, benchmark in enumerate(findings.benchmarks.values()):
        d, margin = benchmark.primary.difference, 100 * benchmark.margin
        look, n = get_look(benchmark.verdict), format_count(benchmark.n, benchmark.n_available)
        band = Rectangle((-margin, row - 0.5), 2 * margin, 1, color=INK, alpha=0.08, linewidth=0)
        axes.add_patch(band)
        if isfinite(d.low) and isfinite(d.high):
            axes.plot([100 * d.low, 100 * d.high], [row, row], color=look.color, linewidth=2)
        axes.plot([100 * d.value], [row], marker=look.marker, color=look.color, markersize=7)
        for offset, content, style in (
            (12, benchmark.verdict.value, {"color": look.color, "weight": "bold"}),
            (n_offset, f"n = {n}" if row == 0 else n, {"ha": "right"}),
        ):
            at: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "va": "center", **style}
            axes.annotate(content, (1, row), (offset, 0), textcoords="offset points", **at)
    axes.axvline(0, color=INK, linewidth=0.8)
    _name_rows(axes, list(findings.benchmarks))
    axes.xaxis.set_major_formatter(FuncFormatter(_format_signed))
    axes.set_xlabel("change, percentage points (band: the margin)")
    return figure


@matplotlib.rc_context(_STYLE)
def draw_training(history: "Sequence[StepLog]", before: float, after: float) -> Figure:
    """The training loss by step, and the validation loss before and after."""
    figure, axes = _new_figure(2.7, "Training loss by step, validation loss before and after")
    logged = [(log.step, log.values.get("loss", float("nan"))) for log in history]
    losses = [(step, loss) for step, loss in logged if isfinite(loss)]
    last = max((step for step, _ in logged), default=1)
    points = [(step, value) for step, value in ((0, before), (last, after)) if isfinite(value)]
    if losses:
        mark = "." if len(losses) < 30 else ""
        axes.plot(*zip(*losses, strict=True), color=_COLORS[0], marker=mark, label="training loss")
    if points:
        values = ", ".join(f"{v:.3f} {'after' if step else 'before'}" for step, v in points)
        label = f"validation loss: {values}"
        look: dict[str, Any] = {"color": _COLORS[1], "marker": "D", "ls": ":", "label": label}
        axes.plot(*zip(*points, strict=True), **look)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats per token")
    if axes.lines:
        figure.legend(loc="outside upper center", ncols=2)
    return figure


@matplotlib.rc_context(_STYLE)
def draw_trade_offs(rows: "Sequence[Configuration]") -> Figure:
    """What each row learned against what it forgot; the Pareto front is joined and filled.

    The points are numbered, and their names stand in a key below.
    """
    shown = [r for r in rows if isfinite(r.target.value) and isfinite(r.retained.value)]
    shown = shown[:MAX_POINTS]
    names = [f"{i}  {_cut(f'{row.name} ({row.ids})', 100)}" for i, row in enumerate(shown, 1)]
    title = "What was learned against what was forgotten"
    figure, axes = _new_figure(3.6 + 0.15 * len(shown), title)
    # rounded: what is equal up to rounding is equal
    at = [(round(-100 * r.retained.value, 9), round(100 * r.target.value, 9)) for r in shown]
    better = {p: [q for q in at if q != p and q[0] <= p[0] and q[1] >= p[1]] for p in at}
    front = sorted(point for point in better if not better[point])
    if front:
        axes.plot(*zip(*front, strict=True), color=_COLORS[0], linestyle="--", zorder=1)
    for name, row, point in zip(names, shown, at, strict=True):
        color, fill = ((_COLORS[0],) * 2) if point in front else (_COLORS[5], "none")
        right, up = _measure_arms([row.retained])[::-1], _measure_arms([row.target])
        axes.errorbar(*point, up, right, fmt="none", ecolor=(color, 0.4), elinewidth=1)
        changes = [f"{n} {format_points(c.change)[0]}" for n, c in row.changes.items()]
        gid = TOOLTIP + "\n".join([name, *changes])
        axes.plot(*point, color=color, gid=gid, marker="o", markersize=7, markerfacecolor=fill)
    for point in better:
        numbers = ", ".join(str(i) for i, q in enumerate(at, 1) if q == point)
        axes.annotate(numbers, point, (5, 5), textcoords="offset points")
    axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.margins(0.08)
    axes.set_xlabel("forgotten: mean fall of the retained benchmarks, points (95 % interval)")
    axes.set_ylabel("learned: mean rise of the targets, points")
    blue = Line2D([], [], color=_COLORS[0], marker="o", ls="--", label="nothing is better in both")
    gray = Line2D([], [], color=_COLORS[5], marker="o", ls="", mfc="none", label="others")
    figure.legend(handles=[blue, gray], loc="outside upper center", ncols=2)
    figure.supxlabel("\n".join(names), x=0.08, ha="left", size=8)
    return figure


@matplotlib.rc_context(_STYLE)
def draw_by_setting(
    setting: str, series: "Mapping[str, Sequence[tuple[float | str, Estimate]]]"
) -> Figure:
    """Each benchmark's change against a setting, with 95 % intervals.

    The axis has numbers where every value is one; it is logarithmic where they grow by factors.

    Args:
        setting: Its dotted key.
        series: By benchmark, the setting's values and the mean change at each, a share of 1.
    """
    figure, axes = _new_figure(3.2 + 0.16 * len(series), f"Change by {setting}")
    values = list(dict.fromkeys(value for points in series.values() for value, _ in points))
    numbers = sorted(v for v in values if isinstance(v, int | float) and type(v) is not bool)
    is_numeric = len(numbers) == len(values)
    for i, (name, points) in enumerate(series.items()):
        # categories stand beside each other; on an axis of numbers that would be wrong
        shift = 0.3 * ((i + 0.5) / len(series) - 0.5)
        places: list[Any] = [v if is_numeric else values.index(v) + shift for v, _ in points]
        changes = [estimate for _, estimate in points]
        line = ("-", "--", "-.", ":")[i // 6 % 4] if is_numeric else "none"
        look: dict[str, Any] = {"marker": "os^DvP"[i % 6], "linestyle": line, "capsize": 2.5}
        look |= {"color": _COLORS[i % 6], "elinewidth": 1, "label": _cut(name, 40)}
        axes.errorbar(places, [100 * c.value for c in changes], _measure_arms(changes), **look)
    if is_numeric and numbers:
        by_factors = numbers[0] > 0 and numbers[-1] >= 8 * numbers[0]
        axes.set_xscale("log" if by_factors else "linear")
        axes.xaxis.set_major_locator(FixedLocator([float(n) for n in numbers]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.set_xticks(range(len(values)), [_cut(str(v), 24) for v in values])
        axes.tick_params(axis="x", rotation=25 if len("".join(map(str, values))) > 60 else 0)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -105), min(high, 105))  # no change is larger than 100 points
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.yaxis.set_major_formatter(FuncFormatter(_format_signed))
    axes.set_xlabel(_cut(setting, 60))
    axes.set_ylabel("change, points (95 % interval)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def write_svg(figure: Figure) -> str:
    """Writes a figure as an SVG element for a page: transparent, in the page's text color.

    The same figure gives the same text, and ids of two figures never meet.
    """
    out = StringIO()
    salt = {"svg.hashsalt": figure.get_label()}  # of ids; the same figure gives the same bytes
    with matplotlib.rc_context(_STYLE | salt):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # its one rule is for every element of a page, and the page has no use for the metadata
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    tooltip = rf"""<g id=(["']){TOOLTIP}(.*?)\1>"""
    svg = re.sub(tooltip, r'<g pointer-events="all"><title>\2</title>', svg, flags=re.DOTALL)
    # of the ids only those that something refers to, which the salt makes this figure's own
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'\1 role="img"><title>{escape(str(figure.get_label()))}</title>'
    )
    return re.sub(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', opening, svg, count=1).strip()


def write_png(figure: Figure) -> bytes:
    """Writes a figure as a PNG on white, 150 dots per inch."""
    out = BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(out, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def _new_figure(height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.set_label(title)
    return figure, figure.add_subplot()


def _measure_arms(estimates: "Sequence[Estimate]") -> list[list[float]]:
    """How far error bars reach below and above in points; 0 where the interval is undefined."""
    below = [100 * (e.value - max(e.low, -1.0)) for e in estimates]
    above = [100 * (min(e.high, 1.0) - e.value) for e in estimates]
    return [[max(0.0, a) if isfinite(a) else 0.0 for a in arms] for arms in (below, above)]


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), [_cut(n, 30) for n in names])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _format_signed(value: float, _: object) -> str:
    return "0" if value == 0 else format_number(value, "+g")
