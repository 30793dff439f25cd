"""The verdicts of a comparison over the seeds of each configuration.

A verdict is a claim about the mean change that other seeds of this configuration would show on
other questions of this kind (`slimdown.stats.seeds.MeanTest`). Two seeds say almost nothing about
how much seeds vary. So below five seeds all configurations are taken to vary alike, and their
spreads are pooled. From five seeds on, each configuration has its own spread. The verdict of a
single run holds for this training alone, as in its own report.

The claims of a table are corrected together (Holm), with the means `learned` and `kept` among them;
claims of change and of no change are corrected separately. No claim is made where the test cannot
hold: where seeds answered other questions, may have stopped early, or are unclear. Watched
benchmarks make no claim either, so the others are not corrected for them.
`python -m bench.statistics` counts the tables that make any false claim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import nan
from statistics import fmean

from slimdown.comparison.run_comparison import (
    Comparison,
    Configuration,
    can_average,
    collect_answers,
    list_columns,
)
from slimdown.comparison.run_records import KEPT, LEARNED
from slimdown.config.benchmark_config import Role
from slimdown.judging.findings import BenchmarkChange
from slimdown.judging.verdicts import Decision, TestedChange, Verdict, decide_verdicts, watch_change
from slimdown.stats.estimates import Estimate
from slimdown.stats.seeds import SeedAnswers, build_tests


@dataclass(frozen=True)
class JudgedMean:
    """The mean change of a configuration and what may be claimed about it."""

    value: float  # a share; nan where it was not measured
    verdict: Verdict | None  # None: watched
    decision: Decision | None = None  # and its test; None where no claim is made
    test: TestedChange | None = None
    margin: float = nan
    own: Estimate | None = None  # of a single run, as its own report has it

    @cached_property
    def shown(self) -> Estimate:
        """The mean with the interval that agrees with its decision, where there is one."""
        if self.own:
            return self.own
        if not (self.decision and self.test):
            return Estimate(self.value, nan, nan, nan)
        return self.decision.form_interval(self.test, self.margin)


@lru_cache(maxsize=2)  # a console, a table and its figures show the same comparison
def judge_configurations(comparison: Comparison) -> list[dict[str, JudgedMean]]:
    """Judge each configuration over its seeds.

    Args:
        comparison: Its rows are judged together: their p-values are corrected for all rows.

    Returns:
        For each row, what may be claimed, by column. The columns are the benchmarks that a run
        measured, and `learned` and `kept` if they are means of several benchmarks.
    """
    columns = _list_cells(comparison)
    cells = [cell for column in columns for cell in column]
    tests: dict[_Cell, TestedChange] = {}
    for column in columns:
        tests |= _test_column(column)
    decisions = _decide_cells(cells, tests)
    judged: list[dict[str, JudgedMean]] = [{} for _ in comparison.rows]
    for cell in cells:
        mean = _judge_cell(cell, decisions.get(cell), tests.get(cell))
        judged[cell.row_number][cell.heading] = mean
    return judged


@dataclass(frozen=True, eq=False)
class _Cell:
    """One configuration's mean in one column, and the changes that it is the mean of."""

    row_number: int
    row: Configuration
    heading: str
    # for each benchmark that the column averages, the change of each run that has it
    changes: list[list[BenchmarkChange]]
    is_watched: bool  # of a benchmark that is reported without a verdict

    @property
    def margin(self) -> float:
        return fmean(by_run[0].margin for by_run in self.changes)

    @property
    def has_nothing_to_lose(self) -> bool:
        """Whether no model answered a question correctly, in benchmarks that are no targets."""
        return all(change.has_nothing_to_lose for by_run in self.changes for change in by_run)

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """What the first run was asked; equal cells can be compared question by question."""
        return tuple((by_run[0].question_hash, by_run[0].metric) for by_run in self.changes)


def _list_cells(comparison: Comparison) -> list[list[_Cell]]:
    """List the cells of each column, without those that no run measured."""
    runs = [run for row in comparison.rows for run in row.runs]
    found = {name: change for run in runs for name, change in run.changes.items()}
    columns = []
    for heading, names in list_columns({n: found[n] for n in comparison.benchmarks}).items():
        is_watched = heading in found and found[heading].role is Role.watched
        column = []
        for row_number, row in enumerate(comparison.rows):
            if changes := _find_changes(row, names):
                column.append(_Cell(row_number, row, heading, changes, is_watched))
        columns.append(column)
    return columns


def _find_changes(row: Configuration, names: Sequence[str]) -> list[list[BenchmarkChange]]:
    """Return the changes of all runs on the benchmarks that a column averages.

    A mean of several benchmarks leaves out those that are unclear.
    """
    found = []
    for name in names:
        changes = [run.changes[name] for run in row.runs if name in run.changes]
        is_clear = all(change.is_measured for change in changes)
        if changes and (is_clear or len(names) == 1):
            found.append(changes)
    return found


def _test_column(column: Sequence[_Cell]) -> dict[_Cell, TestedChange]:
    """Test the change of each cell of a column about which a claim may be made.

    If a cell is one benchmark of one run, the run's own report has tested its change already. The
    others are means. Those that were asked the same questions are tested together, because
    configurations with few seeds pool how much their seeds vary (`build_tests`).

    Returns:
        The tests by cell. A cell about which nothing may be claimed has none.
    """
    tests: dict[_Cell, TestedChange] = {}
    answers: dict[_Cell, SeedAnswers] = {}  # of the cells that are means
    for cell in column:
        changes = [change for by_run in cell.changes for change in by_run]  # of all benchmarks
        if len(changes) == 1 and changes[0].is_measured:  # one benchmark of one run
            tests[cell] = changes[0].primary.difference
        elif can_average(cell.changes):
            answers[cell] = collect_answers(cell.changes)
    for questions in dict.fromkeys(cell.questions for cell in answers):
        alike = {cell: answers[cell] for cell in answers if cell.questions == questions}
        tests |= build_tests(alike)
    return tests


def _decide_cells(
    cells: Sequence[_Cell], tests: Mapping[_Cell, TestedChange]
) -> dict[_Cell, Decision]:
    """Decide the verdicts of all cells that have a test.

    They are corrected together. Cells without a test count in this correction, too: whether a claim
    can be tested must not make the others easier. Cells of watched benchmarks do not count, because
    they have no verdict; their decision only gives the interval to show.

    Args:
        cells: All cells of the table.
        tests: The tests of those cells that have one.
    """
    judged = [cell for cell in tests if not cell.is_watched]
    n_untested = sum(not cell.is_watched for cell in cells) - len(judged)
    margins = [cell.margin for cell in judged]
    decided = decide_verdicts([tests[cell] for cell in judged], margins, n_unknown=n_untested)
    decisions = dict(zip(judged, decided, strict=True))
    for cell, test in tests.items():
        if cell.is_watched:
            decisions[cell] = watch_change(test, cell.margin)
    return decisions


def _judge_cell(cell: _Cell, decision: Decision | None, test: TestedChange | None) -> JudgedMean:
    """Say what may be claimed about a cell.

    A single run keeps the verdict of its own report if this decision agrees; otherwise the cell is
    undecided.

    Args:
        cell: The cell.
        decision: The decision of `_decide_cells`; None if the cell has no test.
        test: The test of its change; None if nothing may be claimed about it.
    """
    runs = cell.row.runs
    own_change = runs[0].changes.get(cell.heading) if len(runs) == 1 else None
    if decision and decision.verdict is Verdict.retained and cell.has_nothing_to_lose:
        # What the base model cannot do cannot be lost, so "retained" would say nothing.
        decision = replace(decision, verdict=Verdict.undecided)
    verdict = decision.verdict if decision else Verdict.undecided
    if cell.is_watched:
        verdict = None
    elif own_change and own_change.verdict is not verdict:
        verdict = Verdict.undecided
    if cell.heading in (LEARNED, KEPT):
        mean = cell.row.target if cell.heading == LEARNED else cell.row.retained
    else:
        mean = cell.row.changes[cell.heading].change
    return JudgedMean(
        mean.value,
        verdict,
        decision,
        test,
        margin=cell.margin,
        own=own_change.shown_change if own_change else None,
    )
