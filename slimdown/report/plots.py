"""Numbers -> matplotlib figures: of one run's findings, and of many runs.

Colours follow Okabe and Ito, which people with any kind of colour blindness tell apart, and nothing is said by colour
alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, cos, dist, isfinite, log, sin, tau
from statistics import mean, pstdev
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from slimdown.report.drawing import DARK, HINT, INK, LIGHT, arms, new_figure, say, styled
from slimdown.report.numbers import asked, number, points as in_points
from slimdown.report.words import LOOKS, kind_of
from slimdown.stats.changes import Changes
from slimdown.stats.paired import Estimate

if TYPE_CHECKING:
    from slimdown.training.fine_tune import StepRecord

_OUTCOMES = {"kept": "#2a86c7", "lost": "#d55e00", "gained": "#009e73", "missed": "#b4b4b4"}
_SERIES = ("#2a86c7", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8c8c8c")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":")
_ANGLES = [
    tau * eighth / 8 for eighth in (1, 0, 7, 2, 6, 3, 5, 4)
]  # where a point's number may stand, best first
_Box = tuple[float, float, float, float]  # middle, half its width, half its height


@dataclass(frozen=True)
class Trade:
    """What one configuration learned and what it lost for it."""

    name: str
    gain: Estimate  # mean change of the target tasks, a share of 1
    loss: Estimate  # minus the mean change of the retained benchmarks, a share of 1
    hint: str = ""  # what an SVG shows when the point is pointed at


@styled
def forest(report: Changes) -> Figure:
    """Each benchmark's primary change in points with its 95 % interval, the margin, the verdict and n."""
    figure, axes = new_figure(
        0.95 + 0.36 * len(report.benchmarks), "Change of each benchmark with its 95 % interval"
    )
    far = (
        150 if any(b.is_stopped for b in report.benchmarks.values()) else 106
    )  # "3,629 of 10,042" is a long number
    for row, benchmark in enumerate(report.benchmarks.values()):
        d, look, margin = (
            benchmark.primary.difference,
            LOOKS[benchmark.verdict],
            100 * benchmark.margin,
        )
        axes.add_patch(
            Rectangle((-margin, row - 0.5), 2 * margin, 1, color=INK, alpha=0.08, linewidth=0)
        )
        if isfinite(d.low) and isfinite(d.high):
            axes.plot(
                [100 * d.low, 100 * d.high],
                [row, row],
                color=look.colour,
                linewidth=2,
                solid_capstyle="butt",
            )
        axes.plot(
            [100 * d.value],
            [row],
            marker=look.marker,
            color=look.colour,
            markersize=7,
            linestyle="none",
        )
        _beside(axes, row, 12, benchmark.verdict.value, color=look.colour, weight="bold")
        _beside(axes, row, far, asked(benchmark.n, benchmark.n_available), ha="right")
    _beside(axes, -0.62, 12, "verdict", va="bottom", alpha=0.65, size=7.5)
    _beside(axes, -0.62, far, "n", va="bottom", ha="right", alpha=0.65, size=7.5)
    axes.axvline(0, color=INK, linewidth=0.8)
    _name_rows(axes, list(report.benchmarks))
    axes.xaxis.set_major_formatter(FuncFormatter(_signed))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set_xlabel("change, percentage points (band: the margin that counts as no change)")
    return figure


@styled
def answers(report: Changes) -> Figure:
    """What became of each benchmark's answers: kept, lost, gained, missed; benchmarks scored 0 or 1 only."""
    counted = {name: b.primary.counts for name, b in report.benchmarks.items() if b.primary.counts}
    figure, axes = new_figure(
        1.0 + 0.34 * max(1, len(counted)), "Answers kept, lost, gained and missed"
    )
    if not counted:
        return say(axes, "no benchmark is scored right or wrong")
    for row, counts in enumerate(counted.values()):
        n = counts.kept + counts.lost + counts.gained + counts.missed
        start = 0.0
        for outcome, colour in _OUTCOMES.items():
            count = int(getattr(counts, outcome))
            share = 100 * count / n
            axes.barh(row, share, left=start, height=0.66, color=colour, linewidth=0)
            if share > 1.6 * len(f"{count:,}") + 1:  # a figure is about 1.6 % of the axis wide
                text = LIGHT if outcome in ("kept", "lost") else DARK
                axes.text(
                    start + share / 2,
                    row,
                    f"{count:,}",
                    ha="center",
                    va="center",
                    color=text,
                    size=8,
                )
            start += share
    keys = [Rectangle((0, 0), 1, 1, color=colour, linewidth=0) for colour in _OUTCOMES.values()]
    labels = [
        "kept: right, right",
        "lost: right, wrong",
        "gained: wrong, right",
        "missed: wrong, wrong",
    ]
    figure.legend(
        keys, labels, loc="outside upper center", ncols=4, handlelength=1, columnspacing=1.4
    )
    axes.set_xlim(0, 100)
    _name_rows(axes, list(counted))
    axes.set_xlabel("share of the questions, % (numbers: questions; before, after)")
    return figure


@styled
def training_curve(history: "Sequence[StepRecord]", before: float, after: float) -> Figure:
    """The training loss by step, and the validation loss before and after as marked points."""
    figure, axes = new_figure(2.7, "Training loss by step, validation loss before and after")
    losses = [
        (r.step, r.values["loss"]) for r in history if isfinite(r.values.get("loss", float("nan")))
    ]
    last = max((record.step for record in history), default=1)
    points = [(step, value) for step, value in ((0, before), (last, after)) if isfinite(value)]
    if not losses and not points:
        return say(axes, "no loss was recorded")
    if losses:
        steps, values = zip(*losses, strict=True)
        mark = "." if len(losses) < 30 else ""
        axes.plot(
            steps, values, color=_SERIES[0], marker=mark, label="training loss", linewidth=1.2
        )
    if points:
        steps, values = zip(*points, strict=True)
        # the numbers stand in the key: beside their points the curve would run through them
        told = ", ".join(
            f"{value:.3f} {'before' if step == 0 else 'after'}" for step, value in points
        )
        axes.plot(
            steps,
            values,
            color=_SERIES[1],
            marker="D",
            markersize=6,
            ls=":",
            label=f"validation loss: {told}",
        )
    axes.margins(x=0.03, y=0.1)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss, nats a token")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def learning_forgetting(points: Sequence[Trade]) -> Figure:
    """What each configuration learned against what it lost, in points; the Pareto front joined and filled.

    Points are numbered and the names stand in a key below: names of any length stay on the page.
    """
    shown = [p for p in points if isfinite(p.gain.value) and isfinite(p.loss.value)]
    keys = [line for i, p in enumerate(shown, 1) for line in _key(i, p.name)]
    figure, axes = new_figure(3.6 + 0.15 * len(keys), "What was learned against what was forgotten")
    if not shown:
        return say(axes, "no run has both a target task and a retained benchmark")
    at = [
        (round(100 * p.loss.value, 9), round(100 * p.gain.value, 9)) for p in shown
    ]  # equal up to rounding is equal
    front = sorted({place for place in at if not any(_beats(other, place) for other in at)})
    axes.plot(*zip(*front, strict=True), color=_SERIES[0], linewidth=1.5, linestyle="--", zorder=1)
    for p, place in zip(shown, at, strict=True):
        colour, fill = (_SERIES[0], _SERIES[0]) if place in front else (_SERIES[5], "none")
        hint = "\n\n".join(
            q.hint or q.name for q, there in zip(shown, at, strict=True) if there == place
        )
        axes.errorbar(
            *place, arms([p.gain]), arms([p.loss]), fmt="none", ecolor=(colour, 0.4), elinewidth=1
        )
        axes.plot(
            *place, color=colour, marker="o", markersize=7, markerfacecolor=fill, gid=HINT + hint
        )
    axes.axhline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.axvline(0, color=INK, linewidth=0.6, alpha=0.5)
    axes.margins(0.08)
    axes.grid(color=INK, alpha=0.1, linewidth=0.6)
    axes.set_xlabel("forgotten: mean fall of the retained benchmarks, points (95 % interval)")
    axes.set_ylabel("learned: mean rise of the targets, points")
    blue = Line2D(
        [],
        [],
        color=_SERIES[0],
        marker="o",
        linestyle="--",
        label="none learned more and lost less",
    )
    grey = Line2D(
        [],
        [],
        color=_SERIES[5],
        marker="o",
        linestyle="none",
        markerfacecolor="none",
        label="beaten by one",
    )
    figure.legend(handles=[blue, grey], loc="outside upper center", ncols=2)
    figure.supxlabel("\n".join(keys), x=0.08, ha="left", size=8)
    _number(axes, at, front)
    return figure


def _number(
    axes: Axes, at: Sequence[tuple[float, float]], line: Sequence[tuple[float, float]]
) -> None:
    """Write each point's number beside it, clear of points, numbers and a line; points in one place share theirs."""
    figure = axes.figure
    figure.draw_without_rendering()  # type: ignore[union-attr]  # the layout says where the points lie
    scale = 72 / figure.dpi
    places, ends = (scale * axes.transData.transform(points) for points in (at, line))
    on_line = [
        one + (other - one) * step / 20 for one, other in pairwise(ends) for step in range(21)
    ]
    taken = [(x, y, 4.0, 4.0) for x, y in places] + [
        (x, y, 0.5, 0.5) for x, y in on_line
    ]  # as `_meet` reads them
    edges = [scale * edge for edge in axes.bbox.extents]
    together: dict[int, list[int]] = {}
    for i, place in enumerate(places):
        first = next((j for j in together if dist(places[j], place) < 3), i)
        together.setdefault(first, []).append(i + 1)
    for i, numbers in together.items():
        text = _ranges(numbers)
        x, y = places[i]
        wide, high = 2.7 * len(text) + 1.0, 4.5
        offsets = [
            (cos(a) * (r + wide - 3), sin(a) * r) for r in (10, 18, 28, 40, 54) for a in _ANGLES
        ]
        boxes = [(x + right, y + up, wide, high) for right, up in offsets]
        free = (
            k
            for k, box in enumerate(boxes)
            if _within(box, edges) and not any(_meet(box, t) for t in taken)
        )
        best = next(free, 0)
        taken.append(boxes[best])
        lead = {
            "arrowstyle": "-",
            "color": INK,
            "alpha": 0.5,
            "linewidth": 0.6,
            "shrinkA": 0,
            "shrinkB": 4,
        }
        arrow = lead if best >= len(_ANGLES) else None
        look: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "weight": "bold",
            "arrowprops": arrow,
        }
        axes.annotate(text, at[i], offsets[best], textcoords="offset points", **look)


def _ranges(numbers: Sequence[int]) -> str:
    """The numbers, those that follow each other by their ends.

    >>> _ranges([1, 2, 3, 5, 7, 8])
    '1–3, 5, 7, 8'
    """
    rows: list[list[int]] = []
    for n in numbers:
        if rows and rows[-1][-1] == n - 1:
            rows[-1].append(n)
        else:
            rows.append([n])
    return ", ".join(
        f"{row[0]}–{row[-1]}" if len(row) > 2 else ", ".join(map(str, row)) for row in rows
    )


def _within(box: _Box, edges: Sequence[float]) -> bool:
    x, y, wide, high = box
    return (
        edges[0] < x - wide and x + wide < edges[2] and edges[1] < y - high and y + high < edges[3]
    )


def _meet(one: _Box, other: _Box) -> bool:
    return abs(one[0] - other[0]) < one[2] + other[2] and abs(one[1] - other[1]) < one[3] + other[3]


@styled
def by_param(param: str, series: Mapping[str, Sequence[tuple[float | str, Estimate]]]) -> Figure:
    """Each metric's change in points against a setting's value, one line a benchmark, with 95 % intervals.

    The axis is one of numbers where every value is one, logarithmic where they grow by factors rather than by steps.
    """
    finite = {
        name: [(v, e) for v, e in points if isfinite(e.value)] for name, points in series.items()
    }
    kept = {name: points for name, points in finite.items() if points}
    longest = max((len(_short(name, 34)) for name in kept), default=1)
    in_a_row = max(1, min(3, 86 // (longest + 8)))  # the key must not be wider than the figure
    figure, axes = new_figure(3.2 + 0.16 * ceil(len(kept) / in_a_row), f"Change by {param}")
    values = list(dict.fromkeys(value for points in kept.values() for value, _ in points))
    if not values:
        return say(axes, f"no run tells of {param}")
    numbers = sorted(
        v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v)
    )
    numeric = len(numbers) == len(values)
    place = {v: v for v in numbers} if numeric else {v: i for i, v in enumerate(values)}
    for i, (name, points) in enumerate(kept.items()):
        ordered = sorted(points, key=lambda point: place[point[0]])  # type: ignore[index]
        # lines of categories stand beside each other; on an axis of numbers a shifted point would be a wrong one
        shift = 0.0 if numeric else 0.3 * ((i + 0.5) / len(kept) - 0.5)
        axes.errorbar(
            [float(place[v]) + shift for v, _ in ordered],  # type: ignore[index]
            [100 * e.value for _, e in ordered],
            yerr=arms([e for _, e in ordered]),
            label=_short(name, 34),
            color=_SERIES[i % len(_SERIES)],
            marker=_MARKERS[i % len(_MARKERS)],
            linestyle=_DASHES[i // len(_SERIES) % len(_DASHES)] if numeric else "none",
            markersize=5.5,
            capsize=2.5,
            elinewidth=1,
        )
    if numeric:
        if _by_factors(numbers):
            axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator([float(v) for v in numbers]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        slant = sum(len(_short(str(v), 20)) for v in values) > 60
        axes.set_xticks(range(len(values)), [_short(str(v), 20) for v in values])
        axes.tick_params(axis="x", rotation=25 if slant else 0)
        axes.set_xlim(-0.5, len(values) - 0.5)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))
    axes.set_xlabel(_short(param, 60))
    axes.set_ylabel("change, points (95 % interval)")
    figure.legend(loc="outside lower center", ncols=in_a_row)
    return figure


@styled
def heat_map(
    columns: Sequence[str], rows: Mapping[str, Sequence[tuple[Estimate, str] | None]]
) -> Figure:
    """Each row's (dataset's) change in points on every column (benchmark) and its verdict; blank where none is."""
    figure, axes = new_figure(1.3 + 0.52 * max(1, len(rows)), "Change by dataset and benchmark")
    if not rows or not columns:
        return say(axes, "there is nothing to compare")
    known = [
        100 * cell[0].value
        for row in rows.values()
        for cell in row
        if cell and isfinite(cell[0].value)
    ]
    most = max([1.0, *(abs(value) for value in known)])
    colours = matplotlib.colormaps["RdBu"]  # red fell, blue rose, white at zero
    for y, (name, row) in enumerate(rows.items()):
        for x, cell in enumerate(row):
            if cell is None or not isfinite(cell[0].value):
                continue
            estimate, verdict = cell
            told, doubt = in_points(estimate)
            red, green, blue, _ = colours(0.5 + 0.42 * 100 * estimate.value / most)
            ground = Rectangle(
                (x - 0.47, y - 0.45), 0.94, 0.9, facecolor=(red, green, blue), linewidth=0
            )
            ground.set_gid(f"{HINT}{name}, {columns[x]}: {told} {doubt} {verdict}")
            axes.add_patch(ground)
            look: dict[str, Any] = {"ha": "center", "va": "center"}
            look["color"] = DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else LIGHT
            axes.text(
                x,
                y - 0.14,
                f"{told} {LOOKS[kind_of(verdict)].sign}",
                weight="bold",
                size=min(8.5, 58 / len(columns)),
                **look,
            )
            axes.text(x, y + 0.22, doubt, size=min(7.0, 38 / len(columns)), **look)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    _name_rows(axes, list(rows))
    slant = any(len(c) > 64 / len(columns) for c in columns)
    axes.set_xticks(range(len(columns)), [_short(c, 24) for c in columns])
    axes.tick_params(axis="x", length=0, rotation=25 if slant else 0)
    if slant:
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.spines["bottom"].set_visible(False)
    figure.supxlabel(
        "mean change, points [95 %] (↓ forgotten, ↑ improved, = retained, ? undecided)", size=8.5
    )
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """The names beside rows, from the first one down, in place of an axis."""
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), ["\n".join(map(_short, name.split(","))) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _beside(axes: Axes, row: float, points: float, text: str, **look: Any) -> None:
    """Write a text so many points to the right of the axes, at the height of a row."""
    at: dict[str, Any] = {
        "xycoords": axes.get_yaxis_transform(),
        "xytext": (points, 0),
        "textcoords": "offset points",
    }
    axes.annotate(text, (1, row), **at, **{"va": "center", "annotation_clip": False, **look})


def _signed(value: float, _: object) -> str:
    return "0" if value == 0 else number(value, "+g")


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _key(number: int, name: str) -> list[str]:
    """A numbered name, on two lines at most."""
    lines = wrap(name, 88, max_lines=2, placeholder="…") or [""]
    return [f"{number}  {lines[0]}", *(f"    {line}" for line in lines[1:])]


def _beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the one has lost no more and learned no less, and is not the same."""
    return one != other and one[0] <= other[0] and one[1] >= other[1]


def _by_factors(numbers: Sequence[float]) -> bool:
    """Whether the numbers, in order, lie more evenly on a logarithmic axis than on a plain one.

    >>> _by_factors([4, 8, 16, 32]), _by_factors([1e-5, 1e-4]), _by_factors([1, 2, 3]), _by_factors([0, 1, 10])
    (True, True, False, False)
    """
    if len(numbers) < 2 or numbers[0] <= 0:
        return False
    if len(numbers) == 2:
        return numbers[1] / numbers[0] >= 10
    steps = [b - a for a, b in pairwise(numbers)]
    factors = [log(b / a) for a, b in pairwise(numbers)]
    return pstdev(factors) / mean(factors) < pstdev(steps) / mean(steps)
