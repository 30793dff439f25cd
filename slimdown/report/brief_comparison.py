"""The table of `slimdown compare` on a console: what was varied, what it did, how sure that is.

One line is one value of what was varied, or one benchmark where there are many. It is never wider
than the console: names are cut in their middle, values never, and columns that find no room stand
in a further block below.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isnan

from rich.cells import cell_len

from slimdown.comparison.checkpoints import choose_checkpoint, read_steps
from slimdown.comparison.group_tests import ShownDifference, find_differences
from slimdown.comparison.run_comparison import Comparison, Configuration, compare_runs
from slimdown.comparison.run_order import parse_setting, sort_by_setting, sort_rows
from slimdown.comparison.run_records import KEPT, LEARNED
from slimdown.comparison.value_verdicts import JudgedMean, judge_configurations
from slimdown.comparison.varied_settings import find_varied
from slimdown.config.benchmark_config import Role
from slimdown.report.formatting import (
    EMPTY,
    cut_name,
    drop_shared_beginning,
    drop_shared_folders,
    format_number,
    format_p_value,
    pluralize,
    visible,
)
from slimdown.report.text import CORRECTED, HOW_TO_CONFIRM
from slimdown.report.verdict_styles import STYLES, WATCHED, find_style
from slimdown.stats.seeds import ENOUGH_SEEDS

_MOST_ACROSS = 5  # benchmarks that stand side by side
_SHORTEST = 6  # characters of a cut heading
_SHORTEST_OF_MANY = 12  # of a benchmark's name where each has a line, and of a word
_ENOUGH = 24  # characters that a long word keeps before headings are cut
_NARROWEST = 5  # characters of a cell such as `0.0 =`
_WIDEST = 10_000
_SIGNS = frozenset(style.sign for style in (*STYLES.values(), WATCHED))
_MOST_SHOWN = 3  # differences below the table
_GAP = "  "
Grid = list[list[str]]  # rows of cells, the headings first


@dataclass(frozen=True)
class Block:
    """A part of the table as lines, the headings first."""

    lines: list[str]
    n_headings: int = 1


@dataclass(frozen=True)
class BriefComparison:
    """Headings, the table, and what is said below it."""

    headings: list[str]
    blocks: list[Block]
    notes: list[str]


def describe_briefly(
    comparison: Comparison,
    width: int,
    max_rows: int = 0,
    by: str | None = None,
) -> BriefComparison:
    """Lay out a comparison.

    Args:
        comparison: The compared runs, in the order of the lines.
        width: The characters of a line.
        max_rows: The most configurations to show; 0 shows all.
        by: The setting whose values are tested against each other; None: the one that was varied.
    """
    settings = find_settings(comparison, by)
    judged = judge_configurations(comparison)
    n_shown = min(max_rows or len(judged), len(judged))
    headings = head_columns(comparison)
    labels = _label_rows(comparison.rows[:n_shown], settings)
    body = [list(headings.values())]
    body += [[_show(of_row.get(name)) for name in headings] for of_row in judged[:n_shown]]
    notes = [f"--rows 0 shows all {len(judged):,} rows."] if n_shown < len(judged) else []
    notes += describe_claims(comparison, by)
    notes += [note for note in comparison.notes if CORRECTED not in note]
    notes += describe_choice(comparison)
    what, how = head_comparison(comparison, by)
    whole = f"{what}, {how}"
    title = [whole] if len(whole) <= width else [what, how]
    return BriefComparison(title, _lay_out(labels, body, len(comparison.benchmarks), width), notes)


def describe_choice(comparison: Comparison) -> Iterator[str]:
    """Say which checkpoint to take, and how a choice is confirmed."""
    if read_steps(comparison):
        if not (chosen := choose_checkpoint(comparison)):
            yield "No checkpoint is within its budgets as measured."
            return
        rise = format_number(100 * chosen.learned, "+.1f")
        reason = f"its targets rose most ({rise} points) of the steps"
        if isnan(chosen.learned):
            reason = "nothing measured what was learned, and it is the last of the steps"
        yield f"Take step {chosen.step:,}: {reason} whose losses are within their budgets so far."
        if comparison.holds_out:
            run_id = chosen.row.runs[0].run_id[:8]
            yield f"Next, on the half that was held back: slimdown compare {run_id} --confirm"
        else:
            yield "To confirm a choice, measure them with evaluation.holdout=0.5."
    elif comparison.holds_out:
        yield HOW_TO_CONFIRM


def find_settings(comparison: Comparison, by: str | None = None) -> list[str]:
    """Return the settings whose values the lines show: what was varied, and seeds not grouped.

    Args:
        comparison: The compared runs.
        by: The setting that comes first.
    """
    rows, keys = comparison.rows, set(comparison.params)
    shown = [{k: v for k, v in row.settings.items() if k in keys} for row in rows]
    varied = find_varied([row.name for row in rows], shown)
    shown_keys = [*varied, *(["seed"] if "seed" in keys else [])]
    return [by, *(key for key in shown_keys if key != by)] if by else shown_keys


def order_by_settings(comparison: Comparison, by: str | None = None) -> Comparison:
    """Order the rows by what was varied, `by` first."""
    for setting in reversed(find_settings(comparison, by)):
        comparison = sort_rows(comparison, setting)
    return comparison


def head_comparison(comparison: Comparison, by: str | None = None) -> tuple[str, str]:
    """Say what was varied, and what the numbers are: means of how many seeds."""
    return ", ".join(find_settings(comparison, by)) or "runs", _describe_seeds(comparison)


def head_columns(comparison: Comparison) -> dict[str, str]:
    """Return the headings by column: `learned`, benchmarks, `kept`."""
    names = comparison.benchmarks
    roles = {n: change.role for row in comparison.rows for n, change in row.changes.items()}
    targets = [name for name in names if roles[name] is Role.target]
    short = drop_shared_beginning(names)
    headings = {LEARNED: LEARNED} if len(targets) > 1 else {}
    headings |= {name: LEARNED if targets == [name] else short[name] for name in names}
    if sum(roles[name] is Role.retained for name in names) > 1:
        headings[KEPT] = KEPT
    return headings


def _label_rows(rows: Sequence[Configuration], settings: Sequence[str]) -> Grid:
    """Return what names each row, the headings first: values, or runs where they name none."""
    values = [tuple(visible(row.settings.get(key) or EMPTY) for key in settings) for row in rows]
    values = list(zip(*map(drop_shared_folders, zip(*values, strict=True)), strict=True)) or values
    if len({row.given_name for row in rows}) > 1:  # people know their runs by these
        names = [visible(row.given_name or EMPTY) for row in rows]
        values = [(name, *of) for name, of in zip(names, values, strict=True)]
        settings = ["name", *settings]
    if settings and len(set(values)) == len(values):
        return [list(settings), *map(list, values)]
    ids = [row.ids for row in rows]
    if settings:
        return [[*settings, "run"], *([*of, id_] for of, id_ in zip(values, ids, strict=True))]
    return [
        ["run", "name"],
        *([id_, visible(row.name)] for id_, row in zip(ids, rows, strict=True)),
    ]


def _show(mean: JudgedMean | None) -> str:
    if mean is None or isnan(mean.value):
        return f"{EMPTY}  "
    return f"{format_number(100 * mean.value, '+.1f')} {find_style(mean.verdict).sign}"


def _describe_seeds(comparison: Comparison) -> str:
    counts = sorted({len(row.runs) for row in comparison.rows})
    if counts[-1] == 1:
        return "one seed each; points against the base, verdicts of these seeds alone"
    seeds = f"mean of {counts[0]}" if len(counts) == 1 else f"means of {counts[0]} to {counts[-1]}"
    return f"{seeds} seeds; points against the base, verdicts over the seeds"


def list_tested(comparison: Comparison, by: str | None = None) -> list[str]:
    """Return the settings whose values are tested against each other: `by`, or what was varied."""
    varied = [key for key in find_settings(comparison) if key != "seed"]
    if read_steps(comparison):  # of one training: there are no seeds to test by
        varied = []
    return [by] if by else varied if len(comparison.rows) > 1 else []


def describe_claims(
    comparison: Comparison, by: str | None = None, most: int = _MOST_SHOWN
) -> Iterator[str]:
    """Say what is shown to differ between values, and what is not.

    Args:
        comparison: The compared runs.
        by: The setting whose values are tested; None: all that were varied.
        most: The most differences to name, the clearest first.
    """
    headings = head_columns(comparison)
    if not (tested := list_tested(comparison, by)):
        return
    if "seed" in find_settings(comparison):  # values are tested over their seeds
        runs = [run for row in comparison.rows for run in row.runs]
        grouped = replace(compare_runs(runs, corrects=False), reference=comparison.reference)
        comparison = sort_by_setting(grouped, tested[0])
    found = find_differences(comparison, *tested)
    if not found.n_tests:
        yield found.reason
        return
    ordered = sorted(found.shown, key=lambda one: one.p_value)
    claims = [
        f"{_name_value(one, tested)} lies {one.points} points {one.side} {one.other} on "
        f"{headings.get(one.benchmark, one.benchmark)}{one.where} "
        f"({'corrected ' * (i == 0)}p {_show_p_value(one.p_value)})"
        for i, one in enumerate(ordered[:most])
    ]
    if len(ordered) > most:
        claims.append(f"{pluralize(len(ordered) - most, 'more difference')} (--all)")
    if claims:
        rest = " The rest is not shown." if len(ordered) < found.n_tests else ""
        yield f"Shown for other seeds and questions: {'; '.join(claims)}.{rest}"
    else:
        names = " or ".join(tested)
        yield f"No difference between values of {names} is shown. More seeds may show one."
    if found.has_few_seeds:
        yield f"Below {ENOUGH_SEEDS} seeds all values are taken to vary alike by seed."


def _name_value(one: ShownDifference, tested: Sequence[str]) -> str:
    return one.value if len(tested) == 1 else f"{one.setting}={one.value}"


def _show_p_value(p_value: float) -> str:
    shown = format_p_value(p_value)
    return shown if shown.startswith("<") else f"= {shown}"


def _lay_out(labels: Grid, body: Grid, n_benchmarks: int, width: int) -> list[Block]:
    """Lay out labels and cells: values down, or benchmarks down where that is too wide."""
    if n_benchmarks <= _MOST_ACROSS and (lines := _fit(labels, body, width, _SHORTEST)):
        return [Block(lines)]
    names = [[name] for name in [*labels[0], *body[0]]]
    columns = [[*label, *cells] for label, cells in zip(labels[1:], body[1:], strict=True)]
    blocks = []
    while columns:
        for n in range(min(len(columns), width // _NARROWEST), 0, -1):
            turned = [list(cells) for cells in zip(*columns[:n], strict=True)]
            if lines := _fit(names, turned, width, _SHORTEST if n == 1 else _SHORTEST_OF_MANY):
                break
        lines = lines or _fit(names, turned, _WIDEST, _SHORTEST)  # a very narrow terminal
        blocks.append(Block(lines, len(labels[0])))
        columns = columns[n:]
    return blocks


def _fit(labels: Grid, body: Grid, width: int, shortest: int) -> list[str]:
    """Return lines that fit, with names cut as little as that takes; none if they cannot.

    Long words are cut first, such as the names of runs, then headings, then all words; but not so
    far that two lines are named alike.
    """
    grid = [[*label, *cells] for label, cells in zip(labels, body, strict=True)]
    longest = max(cell_len(text) for of_line in grid for text in of_line)
    enough = min(longest, _ENOUGH)
    rooms = [(longest, room) for room in range(longest, enough - 1, -1)]
    rooms += [(room, enough) for room in range(longest, shortest - 1, -1)]
    rooms += [(shortest, room) for room in range(enough, _SHORTEST_OF_MANY - 1, -1)]
    n_labels = len(labels[0])

    def cut(of_heads: int, of_words: int) -> Grid:
        heads = [_cut_word(text, of_heads) for text in grid[0]]
        return [heads, *([_cut_word(text, of_words) for text in of_line] for of_line in grid[1:])]

    i = bisect_left(rooms, True, key=lambda room: _measure(cut(*room)) <= width)
    chosen = cut(*rooms[min(i, len(rooms) - 1)])
    names, cut_names = ({tuple(of[:n_labels]) for of in one[1:]} for one in (grid, chosen))
    is_clear = len(names) == len(cut_names)
    return _align(chosen, n_labels) if is_clear and i < len(rooms) else []


def _cut_word(text: str, room: int) -> str:
    """Cut what is not a number, such as the name of a model."""
    is_word = isinstance(parse_setting(text), str) and text[-1:] not in _SIGNS
    return cut_name(text, room) if is_word else text


def _measure(grid: Grid) -> int:
    """Return the width of the lines."""
    widths = [max(map(cell_len, column)) for column in zip(*grid, strict=True)]
    return 1 + sum(widths) + len(_GAP) * (len(widths) - 1)


def _align(grid: Grid, n_labels: int) -> list[str]:
    """Align labels to the left and all else to the right."""
    widths = [max(map(cell_len, column)) for column in zip(*grid, strict=True)]
    lines = []
    for of_line in grid:
        parts = []
        for i, (text, width) in enumerate(zip(of_line, widths, strict=True)):
            space = " " * (width - cell_len(text))
            parts.append(text + space if i < n_labels else space + text)
        lines.append((" " + _GAP.join(parts)).rstrip())
    return lines
