"""Show the stages of a model: a line for each, a waterfall, and what was lost where."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from slimdown.judging.answer_traits import BITS
from slimdown.judging.budgets import Gate
from slimdown.judging.findings import Findings
from slimdown.judging.stages import StageFindings, judge_served
from slimdown.judging.verdicts import Verdict
from slimdown.report import text
from slimdown.report.columns import CHANGE, name_levels
from slimdown.report.findings_report import add_outcome
from slimdown.report.formatting import format_number, format_points, pluralize
from slimdown.report.pages import render_table_page
from slimdown.report.tables import Cell, Column, Row, Table
from slimdown.utils.secrets import redact_leaf

_FEW = 6  # benchmarks, of which a console shows all
_NAME, _STAGE = Column("benchmark", is_name=True), Column("stage", is_name=True)
_COUNT = Column("n", "questions", is_number=True)
_SCORE = Column("score", "%", is_number=True)
_CHANGE = Column(CHANGE, "points", is_number=True)
_VERDICT = Column("verdict")


def stages_table(stages: StageFindings, title: str = "", gate: Gate | None = None) -> Table:
    """Show the stages of each benchmark, a row each: the score, and the change that led to it.

    Args:
        stages: A chain, or several models that are compared with one base.
        title: What stands above the table.
        gate: The budgets of the whole chain and of its stages; None if there are none.

    Returns:
        The table. Its first line is the outcome of the gate, or what was lost at which stage. Its
        records name the two stages of each change; they hold shares of 1.
    """
    # A console leaves secondary rows out: of many benchmarks it shows only those that changed.
    unchanged = [] if len(stages.benchmarks) <= _FEW else _find_unchanged(stages)
    rows = list[Row]()
    for name in stages.benchmarks:
        for row in _show_benchmark(stages, name):
            rows.append(replace(row, is_secondary=name in unchanged))
    rows = name_levels(rows)  # their headings name the intervals' level
    benchmarks = stages.steps[0].findings.benchmarks.values()
    n_benchmarks = sum(benchmark.verdict is not None for benchmark in benchmarks)  # not watched
    # Only a chain of several steps has a whole. Otherwise every change is relative to the first.
    against = "the stage before" if stages.whole else stages.steps[0].before
    legend = (
        f"Changes are relative to {against}, in percentage points, with confidence intervals of at "
        "least 95 % (90 % for retained). Verdicts are corrected for all changes of the table "
        f"({pluralize(len(stages.reported), 'step')}, {pluralize(n_benchmarks, 'benchmark')})."
    )
    losses = list(describe_losses(stages))
    more = pluralize(len(unchanged), "more benchmark")
    notes = [f"{more}: no change is significant."] if unchanged else []
    notes += _describe_asking(stages)
    if gate:  # its outcome is the first line, so the losses are notes
        return add_outcome(Table(title, rows, legend, (*losses, *notes)), gate)
    summary = " ".join(losses)
    return Table(title, rows, legend, tuple(notes), summary, facts={"summary": summary})


def _find_unchanged(stages: StageFindings) -> list[str]:
    """Find the benchmarks that have no significant change, neither in a step nor in the whole."""
    unchanged = []
    for name in stages.benchmarks:
        verdicts = {change.verdict for _, change in stages.list_changes(name)}
        if not verdicts & {Verdict.forgotten, Verdict.improved}:
            unchanged.append(name)
    return unchanged


def _show_benchmark(stages: StageFindings, name: str) -> Iterator[Row]:
    """Yield a benchmark's row of the first stage, a row for each step, and one for the whole.

    A step's row shows the score of its later stage, and the change that led to it. The row of the
    whole shows the change alone: the row above it has the score of the last stage. What programs
    read of a row, see `Table.records`, are the `values` of its cells together.
    """
    changes = stages.list_changes(name)
    first_step, first_change = changes[0]
    role, n = first_change.role, first_change.n
    identity = {"benchmark": name, "role": role.value}
    shared = {_NAME: Cell(text.mark_target(name, role), sort_key=name, values=identity)}
    start = {_STAGE: Cell(redact_leaf(first_step.before), values={"stage": first_step.before})}
    start |= {_COUNT: Cell(f"{n:,}", sort_key=n, values={"n": n})}
    yield Row({**shared, **start, _SCORE: _show_score(first_change.primary.base.value)})
    for step, change in changes:
        is_whole = step is stages.whole
        shown = change.shown_change  # with the interval that agrees with the verdict
        record: dict[str, Any] = {"stage": step.after, "n": change.n, "before": step.before}
        record |= {"is_whole": is_whole, "change": shown.value}
        record |= {"shown_low": shown.low, "shown_high": shown.high, "p_value": change.p_value}
        cells = {_STAGE: Cell("in total" if is_whole else redact_leaf(step.after), values=record)}
        cells[_COUNT] = Cell()  # the first row counts the questions
        cells[_SCORE] = _show_score(change.primary.tuned.value, is_shown=not is_whole)
        cells[_CHANGE] = Cell(*format_points(shown), sort_key=shown.value)
        verdict = change.verdict.value if change.verdict else None  # None: it is watched
        cells[_VERDICT] = Cell(verdict=verdict or "", values={"verdict": verdict})
        yield Row({**shared, **cells})


def _show_score(score: float, is_shown: bool = True) -> Cell:
    """Show a score in percent; if it is not shown, programs still get it."""
    return Cell(format_number(100 * score) if is_shown else "", values={"score": score})


def _describe_asking(stages: StageFindings) -> Iterator[str]:
    """Give the bits per byte of texts, and say which questions were asked, and how.

    A sentence names the part of the questions, where not all were asked, and one each step whose
    two stages were asked differently.
    """
    for name in stages.benchmarks:
        traits = [step.findings.benchmarks[name].find_trait(BITS) for step in stages.steps]
        bits = [trait for trait in traits if trait]
        if len(bits) == len(stages.steps):  # only benchmarks of texts have them
            parts = [f"{stages.steps[0].before} {format_number(bits[0].base, '.3f')}"]
            for step, trait in zip(stages.steps, bits, strict=True):
                parts.append(f"{step.after} {format_number(trait.tuned, '.3f')}")
            yield f"Bits per byte of {name}: {redact_leaf(', '.join(parts))}."
    if part := stages.steps[0].findings.part:
        yield f"Questions: {redact_leaf(part)}."
    for step in stages.steps:
        if step.differences:
            after, before = redact_leaf(step.after), redact_leaf(step.before)
            ways = "; ".join(map(redact_leaf, step.differences))
            yield (
                f"{after} was asked differently from {before}: {ways}. Its change includes the "
                "effect of that."
            )


def describe_losses(stages: StageFindings) -> Iterator[str]:
    """Say at which stages each benchmark fell significantly, or that no loss is significant."""
    has_losses = False
    for name in stages.benchmarks:
        parts = []
        for step in stages.find_losses(name):
            shown = step.findings.benchmarks[name].shown_change
            parts.append(f"{redact_leaf(step.after)} ({' '.join(format_points(shown))})")
        if parts:
            has_losses = True
            yield f"{name} fell at stage {', '.join(parts)}."
    if not has_losses:
        yield (
            "No loss is significant. The confidence intervals show how large a loss could still be."
        )


def served_table(findings: Findings) -> Table | None:
    """Show what a tuned model lost by its weights, and what by the way in which it is served.

    Args:
        findings: With all answers, see `judge_served`.

    Returns:
        The table, with a note on each way in which it is served otherwise than the base. None if it
        is served as the base is.
    """
    stages = judge_served(findings)
    if stages is None:
        return None
    title = "The base model, the tuned model asked like the base, and as served"
    notes = tuple(f"The tuned model is served differently: {line}." for line in findings.serving)
    return replace(stages_table(stages, title), notes=notes)


def render_stages_page(table: Table, stages: StageFindings, command: str) -> str:
    """Render the table and a waterfall of each benchmark as a page.

    Args:
        table: The table from `stages_table`.
        stages: What the waterfalls show. Without a whole there are no waterfalls.
        command: What made the page, such as "verdict --chain".
    """
    from slimdown.report.figures import PHONE_WIDTH, draw_waterfalls  # matplotlib: half a second

    figures: Sequence[Any] = ()
    if stages.whole:  # only the steps of a chain add up to a change that a waterfall shows
        caption = (
            "Each bar shows how much one stage changed the score, with its confidence interval. "
            "The steps add up to the whole change."
        )
        figures = [(draw_waterfalls(stages), draw_waterfalls(stages, PHONE_WIDTH), caption)]
    return render_table_page(table, command, figures)
