"""The columns of findings, each in one line: what it is called, what it shows, and where.

The console, a page, Markdown, JSON and CSV, and the metrics in MLflow take theirs from `COLUMNS`. A
cell holds the text that people read and the values that programs read.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from slimdown.config.benchmark_config import CHOICE_PROBABILITY, PaperMetric, Role
from slimdown.judging.answer_traits import BITS
from slimdown.judging.budgets import BudgetCheck, Gate, Outcome
from slimdown.judging.findings import BenchmarkChange, Findings, MetricChange
from slimdown.report import formatting, text
from slimdown.report.formatting import format_count, format_number, format_points
from slimdown.report.tables import NOT_BRIEF, Cell, Column, Place, Row
from slimdown.stats.estimates import Estimate

_DETAIL = NOT_BRIEF - {Place.mlflow}
CHANGE = "change [95 %]"  # a heading; `name_levels` replaces it if a verdict is `retained`
_SIGNS = {Outcome.within: "✓", Outcome.beyond: "✗", Outcome.undecided: "?"}


@dataclass(frozen=True)
class FindingRow:
    """What a row is about: one metric of one benchmark."""

    findings: Findings
    name: str  # of the benchmark
    metric: str
    gate: Gate | None = None  # the budgets; None: the table has none
    sides: tuple[str, str] = ("base", "tuned")  # what the two compared models are called

    @property
    def benchmark(self) -> BenchmarkChange:
        """The benchmark's change."""
        return self.findings.benchmarks[self.name]

    @property
    def change(self) -> MetricChange:
        """The metric's change."""
        return self.benchmark.changes[self.metric]

    @property
    def is_primary(self) -> bool:
        """Whether this is the metric that is judged."""
        return self.metric == self.benchmark.metric

    @property
    def check(self) -> BudgetCheck | None:
        """The check of the benchmark's budget, if it has one."""
        checks = self.gate.checks if self.gate else ()
        return next((check for check in checks if check.benchmark == self.name), None)


@dataclass(frozen=True, kw_only=True)
class FindingColumn(Column):
    """A column of findings: its heading and its places, and what it shows of a row."""

    show: Callable[[FindingRow], Cell]
    metrics: tuple[str, ...] | None = None  # names of the cell's values in MLflow; None: all
    holds_shares: bool = False  # MLflow shows them in percent or points, with two digits
    show_mean: Callable[[Gate], Cell] = lambda gate: Cell()  # in the row `kept`, see `make_rows`


def make_rows(
    findings: Findings, gate: Gate | None = None, sides: tuple[str, str] = ("base", "tuned")
) -> Iterator[Row]:
    """Yield one row for each metric, the primary one of each benchmark first; then `kept`.

    Args:
        findings: What the rows show.
        gate: The budgets, for their column. If it has a mean of the retained benchmarks
            (`--overall`), this is the row `kept`. None: there are no budgets.
        sides: What the two models are called, in headings and as names of values.
    """
    for name, benchmark in findings.benchmarks.items():
        for metric in benchmark.changes:
            row = FindingRow(findings, name, metric, gate, sides)
            cells = {_name_side(column, sides): column.show(row) for column in COLUMNS}
            yield Row(cells, is_secondary=not row.is_primary)
    if gate and gate.mean:
        yield Row({_name_side(column, sides): column.show_mean(gate) for column in COLUMNS})


def name_levels(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with the levels of the intervals in the heading of the changes.

    An interval of the verdict `retained` is one of 90 %, all others are of 95 %. If no verdict is
    `retained`, the rows stay as they are.
    """
    rows = list(rows)
    if all(cell.verdict != "retained" for row in rows for cell in row.cells.values()):
        return rows

    def name_level(column: Column) -> Column:
        """Return the column with the levels in its heading if it shows the changes."""
        is_change = column.heading == CHANGE
        return replace(column, heading="change [95 %, = 90 %]") if is_change else column

    return [
        replace(row, cells={name_level(column): cell for column, cell in row.cells.items()})
        for row in rows
    ]


def collect_metrics(findings: Findings) -> dict[str, float]:
    """Return what MLflow records of each benchmark's primary metric.

    Returns:
        The numbers by names such as "change/gsm8k". Shares are in percent or points.
    """
    metrics: dict[str, float] = {}
    for name, benchmark in findings.benchmarks.items():
        row = FindingRow(findings, name, benchmark.metric)
        for column in COLUMNS:
            if Place.mlflow not in column.places:
                continue
            values = column.show(row).values
            # If the column names no metrics, all values of its cell are recorded.
            keys = values if column.metrics is None else column.metrics
            for key in keys:
                value = values.get(key)  # None if the benchmark does not have it
                if isinstance(value, int | float):
                    shown = round(100 * value, 2) if column.holds_shares else value
                    metrics[f"{key}/{name}"] = shown
    return metrics


def make_change_cell(change: Estimate, prefix: str = "change") -> Cell:
    """Show a change in points with its interval.

    Args:
        change: The change, a share.
        prefix: The name of the change in the cell's values. Those of both ends begin with it.
    """
    values = {prefix: change.value, f"{prefix}_low": change.low, f"{prefix}_high": change.high}
    return Cell(*format_points(change), sort_key=change.value, values=values)


def _name_side(column: FindingColumn, sides: tuple[str, str]) -> Column:
    """Return the column under a model's own name if it is that of the base or the tuned score."""
    headings = dict(zip(("base", "tuned"), sides, strict=True))
    return replace(column, heading=headings.get(column.heading, column.heading))


def _show_name(row: FindingRow) -> Cell:
    """Show the benchmark's name; in rows of further metrics, the metric, indented."""
    role = row.benchmark.role.value
    shown = f"  {text.shorten_metric(row.metric, row.benchmark)}"
    if row.is_primary:
        shown = text.mark_target(row.name, role)
        if row.metric == CHOICE_PROBABILITY:  # other benchmarks show accuracies
            shown += f" {CHOICE_PROBABILITY}"
    return Cell(shown, values={"benchmark": row.name, "role": role})


def _show_metric(row: FindingRow) -> Cell:
    return Cell(text.shorten_metric(row.metric, row.benchmark), values={"metric": row.metric})


def _show_n(row: FindingRow) -> Cell:
    n, n_available = row.benchmark.n, row.benchmark.n_available
    values = {"n": n, "n_available": n_available or n}
    return Cell(format_count(n, n_available), sort_key=n, values=values)


def _show_score(index: int) -> Callable[[FindingRow], Cell]:
    """Return what shows a model's score: of the base with index 0, of the tuned model with 1."""

    def show(row: FindingRow) -> Cell:
        side, score = row.sides[index], (row.change.base, row.change.tuned)[index]
        values = {side: score.value, f"{side}_stderr": score.standard_error}
        return Cell(format_number(100 * score.value), sort_key=score.value, values=values)

    return show


def _show_change(row: FindingRow) -> Cell:
    """Show the change in points; that of the primary metric with the interval of its verdict."""
    change = row.change.difference  # with its 95 % interval
    shown = change.estimate
    values: dict[str, Any] = {"change": change.value, "change_stderr": change.standard_error}
    values |= {"change_low": change.low, "change_high": change.high}
    if row.is_primary:
        shown = row.benchmark.shown_change  # with the interval of the verdict
        values |= {"shown_low": shown.low, "shown_high": shown.high}
        values["shown_level"] = row.benchmark.shown_level
    counts = row.change.counts  # None if a score is not 0 or 1
    values |= {"lost": counts.lost if counts else None, "gained": counts.gained if counts else None}
    return Cell(*format_points(shown), sort_key=change.value, values=values)


def _show_verdict(row: FindingRow) -> Cell:
    verdict = row.benchmark.verdict.value if row.benchmark.verdict else None
    return Cell(verdict=verdict or "", sort_key=verdict, values={"verdict": verdict})


def _show_budget(row: FindingRow) -> Cell:
    """Show the budget in points and the sign of its outcome; "off" if the user turned it off."""
    if row.gate is None:
        return Cell()
    check = row.check
    if not check:
        is_off = row.name in row.gate.off
        return Cell("off") if is_off else Cell()
    shown = f"{100 * check.budget:.3g} {_SIGNS[check.outcome]}"
    outcome = text.OUTCOMES[check.outcome].lower()
    values = {"budget": check.budget, "outcome": outcome, "reason": check.reason}
    values |= {"bound": check.bound, "bound_level": check.level}
    return Cell(shown, sort_key=check.budget, values=values)


def _show_cause(row: FindingRow) -> Cell:
    """Show the cause of over half of the lost answers, with its share of them."""
    losses = row.findings.lost_answers.get(row.name)
    main_cause = losses.main_cause if losses else None
    if main_cause is None:
        return Cell(values={"main_cause": None, "main_cause_share": None})
    cause, share = main_cause
    shown = f"{100 * share:.0f} % {text.CAUSES[cause][0]}"
    return Cell(shown, values={"main_cause": cause, "main_cause_share": share})


def _show_p_value(row: FindingRow) -> Cell:
    p_value = row.benchmark.p_value
    values = {"p_value": p_value, "equivalence_p_value": row.benchmark.equivalence_p_value}
    if row.benchmark.role is Role.watched:  # nothing is claimed about it, so people see no p-value
        return Cell(values=values)
    return Cell(formatting.format_p_value(p_value), sort_key=p_value, values=values)


def _show_rate(row: FindingRow) -> Cell:
    """Show the forgetting rate of a retained benchmark; nothing if the base had too few right."""
    rate = row.benchmark.forgetting_rate
    if row.benchmark.role is not Role.retained:
        return Cell()
    if rate is None:  # the base is not shown to score above 0
        return Cell("undefined")
    if not text.is_rate_shown(row.benchmark):  # programs get a null
        return Cell(values={"forgetting_rate": None})
    shown, interval = formatting.format_percent(rate)
    return replace(make_change_cell(rate, "forgetting_rate"), text=shown, interval=interval)


def _show_paper_metric(row: FindingRow) -> Cell:
    """Show the paper's metric, if the benchmark has one; MLflow gets it if it is a rate."""
    rate = row.benchmark.forgetting_rate
    is_rate = row.benchmark.paper_metric is PaperMetric.forgetting_rate
    values = {}
    if is_rate and rate and text.is_rate_shown(row.benchmark):
        values = {"forgetting_rate": rate.value}
    return Cell(*text.describe_paper_metric(row.benchmark), values=values)


def _show_bits(row: FindingRow) -> Cell:
    """Show both models' bits per byte, if the benchmark has texts."""
    bits = row.benchmark.find_trait(BITS)
    if not bits:
        return Cell()
    values = {"bits_per_byte_base": bits.base, "bits_per_byte_tuned": bits.tuned}
    values |= {"bits_per_byte_change_low": bits.low, "bits_per_byte_change_high": bits.high}
    return Cell(text.describe_bits(bits), sort_key=bits.tuned, values=values)


def _name_mean(_: Gate) -> Cell:
    return Cell("kept", values={"benchmark": "kept", "role": "mean"})


def _show_mean_change(gate: Gate) -> Cell:
    return make_change_cell(gate.mean) if gate.mean else Cell()


def _show_mean_outcome(gate: Gate) -> Cell:
    """Show whether the mean of the retained benchmarks is shown to be below 0."""
    shown, outcome = ("worse ✗", "worse") if gate.is_worse else ("?", "not shown")
    return Cell(shown, values={"outcome": outcome})


def _if_primary(show: Callable[[FindingRow], Cell]) -> Callable[[FindingRow], Cell]:
    """Return what shows a cell as `show` does, but an empty one in rows of further metrics."""
    return lambda row: show(row) if row.is_primary else Cell()


_number_column = partial(FindingColumn, is_number=True)
COLUMNS: tuple[FindingColumn, ...] = (
    FindingColumn("benchmark", is_name=True, show=_show_name, metrics=(), show_mean=_name_mean),
    FindingColumn("metric", places=_DETAIL, show=_show_metric),
    _number_column("n", "questions", leave_out_rank=1, show=_show_n, metrics=()),
    _number_column("base", "%", show=_show_score(0), metrics=("base",), holds_shares=True),
    _number_column("tuned", "%", show=_show_score(1), metrics=("tuned",), holds_shares=True),
    _number_column(
        CHANGE,
        "points",
        show=_show_change,
        metrics=("change", "change_low", "change_high"),
        holds_shares=True,
        show_mean=_show_mean_change,
    ),
    FindingColumn("verdict", show=_if_primary(_show_verdict), metrics=()),
    _number_column(
        "budget", "points", show=_if_primary(_show_budget), metrics=(), show_mean=_show_mean_outcome
    ),
    FindingColumn("main cause of loss", places=_DETAIL, show=_if_primary(_show_cause)),
    _number_column("p", "corrected", places=_DETAIL, show=_if_primary(_show_p_value)),
    _number_column("forgetting rate", "[95 %]", places=_DETAIL, show=_if_primary(_show_rate)),
    _number_column(
        "paper’s metric",
        "± standard error [95 %]",
        places=NOT_BRIEF,
        show=_if_primary(_show_paper_metric),
        holds_shares=True,
    ),
    FindingColumn(
        "bits per byte",
        places=NOT_BRIEF,
        show=_if_primary(_show_bits),
        metrics=("bits_per_byte_base", "bits_per_byte_tuned"),
    ),
)
