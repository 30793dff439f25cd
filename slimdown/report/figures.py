"""Draw figures of one run and of many runs with matplotlib, as SVG.

Every figure is an object of its own: nothing is registered with pyplot, no setting outlives a call.
Text and axes have the one color `INK`, which an inlined SVG takes from the page around it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from math import ceil, isfinite
from typing import Any
from unittest.mock import patch

from slimdown.judging.findings import BenchmarkChange, Findings
from slimdown.judging.stages import StageFindings
from slimdown.report.formatting import cut_name, format_number, visible
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
    """Draw each benchmark's change with the verdict's interval, the margin, the verdict, and n.

    Each benchmark has a row of its own, the first one at the top.

    Args:
        findings: What is drawn.
        width: In inches. Below `WIDTH` the verdicts stand below the names and replace n.
    """
    figure = _new_figure("Change of each benchmark", 1.0 + 0.36 * len(findings.benchmarks), width)
    axes = figure.add_subplot()
    for row, benchmark in enumerate(findings.benchmarks.values()):
        change = benchmark.shown_change
        verdict_style = find_style(benchmark.verdict)
        color = verdict_style.color
        if benchmark.verdict:  # a watched one has no margin
            margin = 100 * benchmark.margin
            corner = (-margin, row - 0.5)
            axes.add_patch(Rectangle(corner, 2 * margin, 1, color=INK, alpha=0.08, linewidth=0))
        axes.plot([100 * change.low, 100 * change.high], [row, row], color=color, linewidth=2)
        axes.plot([100 * change.value], [row], marker=verdict_style.marker, color=color, ms=7)
        if width == WIDTH and benchmark.verdict:  # on a phone it stands below the name
            # With this transform, 1 is the right edge of the axes, so the verdict is beside them.
            place: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(1.02, row, benchmark.verdict, color=color, weight="bold", **place)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_ylim(len(findings.benchmarks) - 0.5, -0.5)  # row 0 is at the top
    longest = 30 if width == WIDTH else 18  # characters of a name
    names = []
    for name, benchmark in findings.benchmarks.items():
        detail = f"n = {benchmark.n:,}"
        if width < WIDTH and benchmark.verdict:
            detail = f"{find_style(benchmark.verdict).sign} {benchmark.verdict}"
        names.append(f"{_cut(name, longest)}\n{detail}")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(_format_signed)
    axes.set_xlabel("change, points (band: the margin)")
    return figure


@dataclass(frozen=True)
class DrawnMean:
    """What one configuration measured in one column: a dot for each seed, and their mean."""

    value: str  # of the setting that is drawn
    other_settings: str  # as one text; it decides the color; empty if nothing else was varied
    seeds: Sequence[float]  # the change of each, a share
    mean: Estimate  # their mean with the interval of its verdict


@matplotlib.rc_context(_STYLE)
def draw_seeds(
    setting: str, panels: Mapping[str, Sequence[DrawnMean]], width: float = WIDTH
) -> Figure:
    """Draw each seed as a dot and the mean with its interval beside it, a panel per heading.

    Each combination of the other settings has a color, the same in all panels. The dots set the
    limits of the vertical axes. Otherwise one wide interval would press the dots together.

    Args:
        setting: The setting along the horizontal axis.
        panels: By heading, all configurations in their order; all numbers are shares of 1. One that
            did not measure this column has a mean of nan, and is not drawn in this panel.
        width: In inches. Below `WIDTH` the panels stand below one another.
    """
    n_across = max(1, min(len(panels), 3 if width == WIDTH else 1))
    n_down = max(1, ceil(len(panels) / n_across))
    figure = _new_figure(f"Change by {setting}", 0.7 + 2.1 * n_down, width)
    all_means = [drawn for means in panels.values() for drawn in means]
    values = list(dict.fromkeys(drawn.value for drawn in all_means))
    combinations = list(dict.fromkeys(drawn.other_settings for drawn in all_means))
    for number, (heading, means) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(n_down, n_across, number)
        measured = [drawn for drawn in means if isfinite(drawn.mean.value)]
        _draw_seeds_and_means(axes, measured, values, combinations)
        axes.set_ylim(*_find_limits_times_100([seed for drawn in measured for seed in drawn.seeds]))
        axes.set_xlim(-0.6, len(values) - 0.4)
        # Labels that are too long for the width of a panel would overlap.
        letters_of_panel = 26 if n_across > 1 else 48
        room = max(6, letters_of_panel // len(values))  # letters of one label
        axes.set_xticks(range(len(values)), [cut_name(visible(v), room) for v in values])
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.yaxis.set_major_formatter(_format_signed)
        axes.set_title(_cut(heading, 30), fontsize=9)
    _show_colors(figure, combinations)
    return figure


def _draw_seeds_and_means(
    axes: Axes, means: Sequence[DrawnMean], values: Sequence[str], combinations: Sequence[str]
) -> None:
    """Draw the dots of one panel, and beside them the means.

    If the values are numbers, a line joins the means that have the same other settings.

    Args:
        axes: The panel.
        means: The configurations that the panel shows.
        values: All values of the setting, from left to right.
        combinations: All combinations of the other settings. Each has a color, and a place of its
            own at every value.
    """
    # Only numbers and checkpoints ("out/checkpoint-50") have an order for a line to follow.
    is_ordered = all(re.search(r"\d/?$", value) for value in values)
    curves: dict[str, list[tuple[float, float]]] = {}  # places of the means, by other settings
    for drawn in means:
        group = combinations.index(drawn.other_settings)
        color = _COLORS[group % len(_COLORS)]
        # The groups share the middle 70 % of the room between two values.
        place = values.index(drawn.value) + 0.7 * ((group + 0.5) / len(combinations) - 0.5)
        has_seeds = len(drawn.seeds) > 1
        # The dots are shifted to the left and their mean to the right. A single seed is its own
        # mean, so it has no dot.
        shift = 0.12 / len(combinations) if has_seeds else 0.0
        if has_seeds:
            dots = [100 * seed for seed in drawn.seeds]
            axes.plot([place - shift] * len(dots), dots, "o", ms=4, color=color, alpha=0.5)
        style: dict[str, Any] = {"marker": "D" if has_seeds else "o", "markersize": 4.5}
        style |= {"color": color, "capsize": 2.5, "elinewidth": 1}
        mean = 100 * drawn.mean.value
        curves.setdefault(drawn.other_settings, []).append((place + shift, mean))
        axes.errorbar([place + shift], [mean], _measure_arms([drawn.mean]), **style)
    if not is_ordered:
        return
    for other_settings, points in curves.items():
        color = _COLORS[combinations.index(other_settings) % len(_COLORS)]
        across, up = zip(*sorted(points), strict=True)  # from left to right
        axes.plot(across, up, color=color, lw=1, alpha=0.6)


@matplotlib.rc_context(_STYLE)
def draw_learned_and_kept(
    setting: str,
    learned: Sequence[DrawnMean],
    kept: Sequence[DrawnMean],
    unit: str,
    width: float = WIDTH,
) -> Figure:
    """Draw what each configuration learned against what it kept; a line joins values in order.

    Each combination of the other settings has a color and a line. Seeds are not drawn. All numbers
    are drawn times 100. The means set the limits of the axes, so a long interval may extend beyond
    them.

    Args:
        setting: The setting whose values name the dots.
        learned: What each configuration learned; 0.01 is one `unit`.
        kept: The same configurations in the same order; shares of 1.
        unit: The unit of what was learned, such as "points".
        width: In inches.
    """
    height = 4.2 if width == WIDTH else 3.4
    figure = _new_figure(f"Learned against kept, by {setting}", height, width)
    axes = figure.add_subplot()
    combinations = list(dict.fromkeys(drawn.other_settings for drawn in learned))
    pairs = list(zip(learned, kept, strict=True))
    for number, combination in enumerate(combinations):
        color = _COLORS[number % len(_COLORS)]
        group_pairs = [pair for pair in pairs if pair[0].other_settings == combination]
        learned_means = [drawn.mean for drawn, _ in group_pairs]
        kept_means = [drawn.mean for _, drawn in group_pairs]
        across = [100 * mean.value for mean in kept_means]
        up = [100 * mean.value for mean in learned_means]
        axes.plot(across, up, color=color, linewidth=1, alpha=0.6)
        xerr, yerr = _measure_arms(kept_means), _measure_arms(learned_means)
        axes.errorbar(across, up, yerr, xerr, fmt="none", ecolor=(color, 0.35), elinewidth=1)
        axes.plot(across, up, "o", color=color, markersize=6)
        for (drawn, _), x, y in zip(group_pairs, across, up, strict=True):
            label = cut_name(visible(drawn.value), 24)
            axes.annotate(label, (x, y), (5, 5), textcoords="offset points")
    axes.set_xlim(*_find_limits_times_100([drawn.mean.value for drawn in kept]))
    axes.set_ylim(*_find_limits_times_100([drawn.mean.value for drawn in learned]))
    axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.xaxis.set_major_formatter(_format_signed)
    axes.yaxis.set_major_formatter(_format_signed)
    axes.set_xlabel("kept, points")
    axes.set_ylabel(f"learned, {unit}")
    _show_colors(figure, combinations)
    return figure


def _find_limits_times_100(shares: Sequence[float]) -> tuple[float, float]:
    """Return the ends of an axis on which shares are drawn times 100, as points are.

    The axis holds 0 and all shares, with some room.
    """
    low, high = min(0.0, *shares), max(0.0, *shares)
    room = 0.18 * (high - low) or 0.01  # if all are 0, an axis still needs a length
    return 100 * (low - room), 100 * (high + room)


def _show_colors(figure: Figure, combinations: Sequence[str]) -> None:
    """Add a legend that names the settings of each color; nothing if there is only one."""
    if len(combinations) > 1:
        colors = [_COLORS[i % 6] for i in range(len(combinations))]
        lines = [Line2D([], [], marker="o", linestyle="", color=color) for color in colors]
        names = [_cut(name, 60) for name in combinations]
        figure.legend(lines, names, loc="outside lower center", ncols=2)


@matplotlib.rc_context(_STYLE)
def draw_scales(
    curves: Mapping[str, Sequence[tuple[float, Estimate]]], width: float = WIDTH
) -> Figure:
    """Draw each benchmark's change against the scale of the adapter, with 95 % intervals.

    Args:
        curves: As `build_simultaneous_curves` returns them: by benchmark, pairs of a scale and the
            change there, a share of 1.
        width: In inches.
    """
    figure = _new_figure("Change by scale", 3.2 + 0.16 * len(curves), width)
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        scales = [scale for scale, _ in points]
        changes = [estimate for _, estimate in points]
        heights = [100 * change.value for change in changes]
        style: dict[str, Any] = {"marker": "os^DvP"[number % 6], "linestyle": "-", "capsize": 2.5}
        style |= {"color": _COLORS[number % 6], "elinewidth": 1, "label": _cut(name, 40)}
        axes.errorbar(scales, heights, _measure_arms(changes), **style)
    ticks = sorted({scale for points in curves.values() for scale, _ in points})
    axes.set_xticks(ticks, [f"{scale:g}" for scale in ticks])
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.yaxis.set_major_formatter(_format_signed)
    axes.set_xlabel("scale of the adapter")
    axes.set_ylabel("change, points (95 % interval)")
    figure.legend(loc="outside lower center", ncols=2 if width == WIDTH else 1)
    return figure


@matplotlib.rc_context(_STYLE)
def draw_waterfalls(stages: StageFindings, width: float = WIDTH) -> Figure:
    """Draw a panel for each benchmark: its score at the first stage, and a bar for each change.

    A bar leads from the score before a step to the score after it. Its error bar is the confidence
    interval of the change.

    Args:
        stages: A chain, in which each step leads from one stage to the next.
        width: In inches. Below `WIDTH` the panels stand below one another.
    """
    n_across = max(1, min(len(stages.benchmarks), 2 if width == WIDTH else 1))
    n_down = ceil(len(stages.benchmarks) / n_across)
    names = [stages.steps[0].before, *(step.after for step in stages.steps)]
    figure = _new_figure("Score after each stage", 0.4 + 2.4 * n_down, width)
    for number, name in enumerate(stages.benchmarks, start=1):
        axes = figure.add_subplot(n_down, n_across, number)
        # `list_changes` also gives the change from the first stage to the last: it has no bar.
        _draw_bars(axes, [change for _, change in stages.list_changes(name)[: len(stages.steps)]])
        axes.set_xlim(-0.6, len(names) - 0.4)
        room = max(9, 42 // len(names))  # letters of one label
        axes.set_xticks(range(len(names)), [cut_name(visible(stage), room) for stage in names])
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        axes.set_ylabel("%")
        axes.set_title(_cut(name, 30), fontsize=9)
    return figure


def _draw_bars(axes: Axes, changes: Sequence[BenchmarkChange]) -> None:
    """Draw a line at the score of the first stage, and a bar for the change of each step."""
    score = 100 * changes[0].primary.base.value
    axes.plot([-0.35, 0.35], [score, score], color=INK, linewidth=2.5)
    for place, change in enumerate(changes, start=1):  # the first stage is at place 0
        # A dotted line carries the score of the stage before over to this bar.
        axes.plot([place - 0.65, place + 0.35], [score, score], ":", color=INK, linewidth=0.8)
        color = find_style(change.verdict).color
        rise = 100 * change.primary.difference.value
        axes.add_patch(Rectangle((place - 0.35, score), 0.7, rise, color=color, alpha=0.75))
        score += rise
        arms = _measure_arms([change.shown_change])
        axes.errorbar([place], [score], arms, ecolor=INK, capsize=2.5)
        axes.plot([place - 0.35, place + 0.35], [score, score], color=INK, linewidth=1.5)


def write_svg(figure: Figure) -> str:
    """Write a figure as an SVG element for a page: transparent, in the page's text color.

    The same figure gives the same text. Figures with different labels have no id in common.
    """
    out = StringIO()
    # matplotlib makes ids from this salt. Without one they would be random.
    salt = {"svg.hashsalt": figure.get_label()}
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # None leaves each out
    with matplotlib.rc_context(_STYLE | salt):
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML declaration: the element is put into a page
    # The element's one style rule would hold for the whole page.
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans'")
    # Keep only ids that something refers to. The salt makes these unique to this figure.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    # Replace the opening tag. Its fixed size in points goes and only the view box stays, so that
    # the page decides the size. The title is what a screen reader says.
    opening, _, content = svg.partition(">")
    view_box = re.findall('viewBox="[^"]*"', opening)[0]
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    title = escape(str(figure.get_label()))
    return f'<svg {namespaces} {view_box} role="img"><title>{title}</title>{content}'.strip()


def _new_figure(title: str, height: float, width: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    # `write_svg` makes the ids and the title of this label.
    figure.set_label(f"{title}{', for a phone' if width < WIDTH else ''}")
    return figure


def _measure_arms(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Measure error bars as matplotlib takes them, in points.

    Returns:
        The lengths below each value, and those above it; 0 where the interval is undefined.
    """
    below = [100 * (e.value - max(e.low, -1.0)) for e in estimates]
    above = [100 * (min(e.high, 1.0) - e.value) for e in estimates]
    return [
        [max(0.0, length) if isfinite(length) else 0.0 for length in lengths]
        for lengths in (below, above)
    ]


def _cut(name: str, width: int) -> str:
    name = visible(name)  # matplotlib warns of a control character, and writes it to the terminal
    return name if len(name) <= width else f"{name[: width - 1]}…"


def _format_signed(value: float, _: object) -> str:
    return "0" if value == 0 else format_number(value, "+g")
