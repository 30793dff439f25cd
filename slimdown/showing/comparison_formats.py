"""A `Comparison` or a pair -> what a person reads: the console's tables, Markdown, and the words of every other form.

Numbers are in points; files for programs and pages are `comparison_files.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from slimdown.judging.anatomy import main_cause
from slimdown.judging.changes import BenchmarkChange, Changes
from slimdown.judging.comparison import Cell, Comparison, Row, short_keys
from slimdown.judging.paired import Estimate
from slimdown.judging.seeds import SeedsChange
from slimdown.judging.selection import MARK
from slimdown.settings.schema import Role
from slimdown.showing.console import VERDICT_STYLES, in_markdown

FORMATS = ("table", "markdown", "csv", "json", "html")
SEEDS_LEGEND = (
    "Mean change over seeds in points, tuned - base, with a 95 % interval for other questions and other seeds. Its two "
    "standard errors: questions, which more questions would lower, and training, which more seeds would; from seed to "
    "seed, the standard deviation of the true change, as likely too large as too small."
)
_MOST_COLUMNS = 4  # settings with a column each; more stand together in one
_MOST_SEEDS = 4  # that are listed
_UNBOUNDED = 10_000  # columns: as wide as a table likes
_LEGEND = (
    "Change of each benchmark's primary metric in points, tuned - base, [95 % interval], verdict of the run (claims of "
    "change and of none at 5 % each), "
    "which is of its checkpoint and for questions like these (where they come from subjects, for such subjects; from "
    "fewer than 5, for these only); * target task."
)
_LEGEND_SEEDS = (
    "Where a row holds several seeds: mean ± standard deviation over seeds, "
    "and the verdicts with their number of seeds."
)


@dataclass(frozen=True)
class Heading:
    """What stands above a comparison."""

    title: str  # which runs of which store
    notes: tuple[str, ...]  # what was left out, what must be known


@dataclass(frozen=True)
class Paired:
    """Two tuned models, question by question; or a base and a tuned one, on questions that did not choose it."""

    before: str  # a run's name and id, or base
    after: str
    report: Changes  # after - before
    causes: dict[str, dict[str, float]]  # by benchmark: share of the lost answers by cause
    n_lost: dict[str, int]  # by benchmark: answers that any metric lost
    n_confirmed: int = 0  # how many runs are confirmed together; 0: two tuned models

    @property
    def title(self) -> str:
        return f"{self.before} → {self.after}"

    @property
    def sides(self) -> tuple[str, str]:
        """What the two columns of scores are called."""
        return ("base", "tuned") if self.n_confirmed else ("first", "second")


# --- console --------------------------------------------------------------------------------------


def show(comparison: Comparison, heading: Heading, console: Console, most: int) -> None:
    """Print the table, as wide as the console allows; at most so many rows (0: all)."""
    rows = comparison.rows[:most] if most else comparison.rows
    console.print(Text(heading.title), style="bold", soft_wrap=True)  # an address stays in one piece
    for note in heading.notes:
        console.print(Text(note), style="yellow")
    layouts: list[Callable[[Comparison, Sequence[Row]], Table]] = [_wide, _narrow]
    free = console.options.update(width=_UNBOUNDED)
    if not console.is_terminal:  # a file or a pipe is as wide as it has to be
        console.width = max(console.width, Measurement.get(console, free, _wide(comparison, rows)).maximum)
    for layout in layouts:
        table = layout(comparison, rows)
        if Measurement.get(console, free, table).maximum <= console.width:
            break
    else:
        table = _stacked(comparison, rows)
    console.print(table)
    if len(rows) < len(comparison.rows):
        console.print(f"{len(comparison.rows) - len(rows):,} more rows; --rows 0 shows all of {len(comparison.rows):,}")
    console.print(Text(legend(comparison)), style="dim")


def show_paired(pairs: Sequence[Paired], console: Console) -> None:
    """Print the table of each pair."""
    for paired in pairs:
        console.print(Text(paired.title), style="bold")
        table = _table()
        for column in ("benchmark", "metric"):
            table.add_column(column)
        for column in ("n", *paired.sides, "change", "p"):
            table.add_column(column, justify="right", no_wrap=True)
        table.add_column("verdict")
        for name, b in paired.report.benchmarks.items():
            verdict = Text.assemble((b.verdict.value, VERDICT_STYLES[b.verdict]))
            if cause := paired_cause(paired, name):
                verdict.append(f"\n{cause}", "dim")
            table.add_row(*(Text(text) for text in paired_texts(name, b)), verdict)
        console.print(table)
    console.print(Text(paired_legend(pairs)), style="dim")


def show_seeds(changes: Mapping[str, Sequence[SeedsChange]], console: Console) -> None:
    """Print, for each configuration of several seeds, the noise of its questions and of its training."""
    table = _table()
    for column in ("run", "benchmark"):
        table.add_column(column)
    for column in ("seeds", "n", "mean change", "questions ±", "training ±", "from seed to seed"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, found in changes.items():
        for i, change in enumerate(found):
            noise = change.noise
            table.add_row(
                Text(name if i == 0 else ""),
                Text(seeds_benchmark(change)),
                str(noise.n_seeds),
                str(change.n),
                Text(points(noise.mean, nan)),
                f"{100 * noise.question_standard_error:.1f}",
                f"{100 * noise.training_standard_error:.1f}",
                f"{100 * noise.training_spread:.1f}",
            )
    console.print(table)
    console.print(Text(seeds_legend(changes)), style="dim")


def seeds_markdown(changes: Mapping[str, Sequence[SeedsChange]]) -> str:
    """The same as Markdown."""
    headings = ["run", "benchmark", "seeds", "n", "mean change", "questions ±", "training ±", "from seed to seed"]
    lines = [_line(headings), _line(["---"] * len(headings))]
    for name, found in changes.items():
        for change in found:
            noise = change.noise
            spreads = (noise.question_standard_error, noise.training_standard_error, noise.training_spread)
            cells = [name, seeds_benchmark(change), str(noise.n_seeds), str(change.n), points(noise.mean, nan)]
            lines.append(_line([*cells, *(f"{100 * spread:.1f}" for spread in spreads)]))
    return "\n".join([*lines, "", seeds_legend(changes), ""])


def seeds_legend(changes: Mapping[str, Sequence[SeedsChange]]) -> str:
    """How the noise of several seeds is read, and of which questions."""
    parts = sorted({change.part for found in changes.values() for change in found if change.part})
    return " ".join([SEEDS_LEGEND, *(f"About {part}." for part in parts)])


def seeds_benchmark(change: SeedsChange) -> str:
    """The benchmark and, where its questions come from subjects, what is said of it holds for."""
    return f"{change.benchmark} ({change.noise.population})" if change.noise.n_groups else change.benchmark


def legend(comparison: Comparison) -> str:
    """How the table is read."""
    return f"{_LEGEND} {_LEGEND_SEEDS}" if comparison.grouped else _LEGEND


def _wide(comparison: Comparison, rows: Sequence[Row]) -> Table:
    return _columns(comparison, rows, " ")


def _narrow(comparison: Comparison, rows: Sequence[Row]) -> Table:
    return _columns(comparison, rows, "\n")


def _columns(comparison: Comparison, rows: Sequence[Row], before_verdict: str) -> Table:
    table = _table()
    table.add_column("run", max_width=44, overflow="fold")
    table.add_column("id", no_wrap=True)
    for heading in param_headings(comparison):
        table.add_column(Text(heading), justify="left", max_width=40, overflow="fold")
    for name in comparison.benchmarks:
        table.add_column(Text(starred(comparison, name)), no_wrap=True)
    table.add_column("mean retained", no_wrap=True)
    for row in rows:
        cells = [_cell_text(row.cells.get(name), before_verdict) for name in comparison.benchmarks]
        mean = Text(points(row.retained, row.retained_spread))
        table.add_row(Text(row.name), row.ids, *map(Text, param_texts(comparison, row)), *cells, mean)
    return table


def _stacked(comparison: Comparison, rows: Sequence[Row]) -> Table:
    """One line a benchmark below each run: for a narrow terminal."""
    table = _table()
    table.add_column("run, benchmark", overflow="fold")
    table.add_column("change", no_wrap=True)
    table.add_column("verdict", overflow="fold", min_width=10)
    for row in rows:
        settings = zip(param_headings(comparison), param_texts(comparison, row), strict=True)
        table.add_row(Text(f"{row.name} ({row.ids})", "bold"))
        if told := ", ".join(f"{key} {value}" for key, value in settings if value):
            table.add_row(Text(f"  {told}", "dim"))
        for name in comparison.benchmarks:
            if cell := row.cells.get(name):
                verdict = _verdict_text(cell)
                if cell.main_cause:
                    verdict.append(f", {cause_text(*cell.main_cause)}", "dim")
                change = Text(points(cell.change, cell.spread))
                table.add_row(Text(f"  {starred(comparison, name)}"), change, verdict)
        table.add_row("  mean retained", Text(points(row.retained, row.retained_spread)), end_section=True)
    return table


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)


def _verdict_text(cell: Cell) -> Text:
    """The run's own verdict, and what is left of it among all the others where that is less."""
    text = Text(cell.verdict, VERDICT_STYLES.get(cell.verdict, "yellow"))
    if correction := correction_text(cell):
        text.append(correction, "yellow")
    return text


def _cell_text(cell: Cell | None, before_verdict: str) -> Text:
    if cell is None:
        return Text("–", "dim")
    text = Text(points(cell.change, cell.spread))
    if cell.verdict:
        text.append(before_verdict)
        text.append(_verdict_text(cell))
    if cell.main_cause:
        text.append(f"\n{cause_text(*cell.main_cause)}", "dim")
    return text


# --- words and numbers ------------------------------------------------------------------------------


def points(estimate: Estimate, spread: float) -> str:
    """A change in points with its interval, or with its standard deviation over seeds."""
    if not isfinite(estimate.value):
        return "–"
    text = f"{100 * estimate.value:+.1f}"
    if isfinite(spread):
        return f"{text} ± {100 * spread:.1f}"
    if isfinite(estimate.low) and isfinite(estimate.high):
        return f"{text} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
    return text


def correction_text(cell: Cell) -> str:
    """What the correction for the whole comparison leaves of a verdict; empty where all of it."""
    return "" if cell.corrected == cell.verdicts else f" → {cell.verdict_corrected} {MARK}"


def cause_text(name: str, share: float) -> str:
    """What most lost answers were lost to.

    >>> cause_text("other_format", 0.81)
    '81 % other format'
    """
    return f"{100 * share:.0f} % {name.replace('_', ' ')}"


def param_headings(comparison: Comparison) -> list[str]:
    """The headings of the settings' columns: one each, or one for all where they are many."""
    seeds = ["seeds"] if comparison.grouped else []
    names = short_keys(comparison.params)
    if len(comparison.params) <= _MOST_COLUMNS:
        return seeds + list(names.values())
    return [*seeds, "what differs"]


def param_texts(comparison: Comparison, row: Row) -> list[str]:
    """What stands below `param_headings` in one row."""
    seeds = [seeds_text(row)] if comparison.grouped else []
    values = {short: row.settings.get(key, "") for key, short in short_keys(comparison.params).items()}
    if len(values) <= _MOST_COLUMNS:
        return seeds + list(values.values())
    return [*seeds, ", ".join(f"{key}={value}" for key, value in values.items() if value)]


def seeds_text(row: Row) -> str:
    return ", ".join(row.seeds) if len(row.seeds) <= _MOST_SEEDS else f"{len(row.seeds)} seeds"


def starred(comparison: Comparison, name: str) -> str:
    target = any(row.cells[name].role == Role.target.value for row in comparison.rows if name in row.cells)
    return f"{name} *" if target else name


def paired_texts(name: str, b: BenchmarkChange) -> list[str]:
    d = b.primary.difference
    return [
        f"{name} *" if b.role is Role.target else name,
        b.metric,
        f"{b.n:,}",
        f"{100 * b.primary.base.value:.1f}",
        f"{100 * b.primary.tuned.value:.1f}",
        points(Estimate(d.value, d.standard_error, d.low, d.high), float("nan")),
        f"{b.p_value:.2g}",
    ]


def paired_cause(paired: Paired, name: str) -> str:
    found = main_cause(paired.causes[name], paired.n_lost[name])
    return cause_text(*found) if found else ""


def paired_legend(pairs: Sequence[Paired]) -> str:
    """How pairs are read: two tuned models are one, runs that are confirmed several."""
    n, report = len(pairs), pairs[0].report
    differences = {name: b.primary.difference for name, b in report.benchmarks.items()}
    subjects = "".join(f", {name} for {d.population}" for name, d in differences.items() if d.n_groups)
    means = "; ".join(points(paired.report.mean_retained_change, nan) for paired in pairs)
    part = f" About {report.part}." if report.part else ""
    if pairs[0].n_confirmed:
        change, whose = "from the base to the tuned model", f"{'this' if n == 1 else 'each'} checkpoint"
    else:
        change, whose = "from the first to the second run's tuned model", "these two checkpoints"
    return (
        f"Change in points {change} with its 95 % interval, each question's two answers paired; * target task. Mean "
        f"change of the retained benchmarks: {means}.{part} Verdicts hold for {whose} and questions like "
        f"these{subjects}; the chance of any false claim of change is 5 % at most, that of any false claim of none 5 % "
        "as well (Holm)."
    )


# --- Markdown ---------------------------------------------------------------------------------------


def markdown(comparison: Comparison, heading: Heading) -> str:
    """The comparison as a Markdown table."""
    headings = [
        "run",
        "id",
        *param_headings(comparison),
        *(starred(comparison, name) for name in comparison.benchmarks),
        "mean retained",
    ]
    lines = [f"### {in_markdown(heading.title)}", "", *(f"- {in_markdown(note)}" for note in heading.notes)]
    lines += [""] if heading.notes else []
    lines += [_line(headings), "|" + "---|" * len(headings)]
    for row in comparison.rows:
        cells = [_markdown_cell(row.cells.get(name)) for name in comparison.benchmarks]
        lines.append(
            _line(
                [
                    row.name,
                    row.ids,
                    *param_texts(comparison, row),
                    *cells,
                    points(row.retained, row.retained_spread),
                ]
            )
        )
    return "\n".join([*lines, "", in_markdown(legend(comparison)), ""])


def paired_markdown(pairs: Sequence[Paired]) -> str:
    """Each pair as a Markdown table."""
    lines = []
    for paired in pairs:
        headings = ["benchmark", "metric", "n", *paired.sides, "change", "p", "verdict", "most lost answers"]
        rows = [
            _line([*paired_texts(name, b), b.verdict.value, paired_cause(paired, name)])
            for name, b in paired.report.benchmarks.items()
        ]
        lines += [f"### {in_markdown(paired.title)}", "", _line(headings), "|" + "---|" * len(headings), *rows, ""]
    return "\n".join([*lines, in_markdown(paired_legend(pairs)), ""])


def _markdown_cell(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    cause = f" ({cause_text(*cell.main_cause)})" if cell.main_cause else ""
    return f"{points(cell.change, cell.spread)} {cell.verdict}{correction_text(cell)}{cause}".strip()


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(in_markdown, cells)) + " |"
