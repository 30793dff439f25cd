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
        stages: What is shown.
        title: What stands above the table.
        gate: The budgets of the whole chain; None if it has none.

    Returns:
        The table. Its records name the two stages of each change; they hold shares of 1.
    """
    unchanged = [] if len(stages.benchmarks) <= _FEW else _find_unchanged(stages)
    rows = name_levels(
        replace(row, is_secondary=name in unchanged)
        for name in stages.benchmarks
        for row in _show_benchmark(stages, name)
    )
    n_steps = len(stages.reported)
    changes = stages.steps[0].findings.benchmarks.values()
    n_benchmarks = sum(change.verdict is not None for change in changes)  # others are watched
    against = "the stage before" if stages.whole else stages.steps[0].before
    legend = (
        f"Changes are relative to {against}, in percentage points, with confidence intervals of at "
        "least 95 % (90 % for retained). Verdicts are corrected for all changes of the table "
        f"({pluralize(n_steps, 'step')}, {pluralize(n_benchmarks, 'benchmark')})."
    )
    losses = list(describe_losses(stages))
    notes = list(_describe_asking(stages))
    if unchanged:
        notes.insert(0, f"{pluralize(len(unchanged), 'more benchmark')}: no change is significant.")
    if gate:
        return add_outcome(Table(title, rows, legend, (*losses, *notes)), gate)
    summary = " ".join(losses)
    facts = {"summary": summary}
    return Table(title, rows, legend, tuple(notes), outcome=summary, facts=facts)


def _find_unchanged(stages: StageFindings) -> list[str]:
    """Find the benchmarks that neither a step nor the whole is shown to have changed."""
    shown = (Verdict.forgotten, Verdict.improved)
    return [
        name
        for name in stages.benchmarks
        if not any(change.verdict in shown for _, change in stages.list_changes(name))
    ]


def _show_benchmark(stages: StageFindings, name: str) -> Iterator[Row]:
    """Yield a benchmark's row of the first stage, a row for each step, and one for the whole."""
    changes = stages.list_changes(name)
    first_step, first = changes[0]
    identity = {"benchmark": name, "role": first.role.value}
    shared = {_NAME: Cell(text.mark_target(name, first.role), sort_key=name, values=identity)}
    start = {_STAGE: Cell(redact_leaf(first_step.before), values={"stage": first_step.before})}
    start |= {_COUNT: Cell(f"{first.n:,}", sort_key=first.n, values={"n": first.n})}
    yield Row({**shared, **start, _SCORE: _show_score(first.primary.base.value)})
    for step, change in changes:
        is_whole = step is stages.whole
        shown = change.shown_change
        values: dict[str, Any] = {"stage": step.after, "n": change.n, "before": step.before}
        values |= {"is_whole": is_whole, "change": shown.value}
        values |= {"shown_low": shown.low, "shown_high": shown.high, "p_value": change.p_value}
        cells = {_STAGE: Cell("in total" if is_whole else redact_leaf(step.after), values=values)}
        cells[_COUNT] = Cell()
        cells[_SCORE] = _show_score(change.primary.tuned.value, is_shown=not is_whole)
        cells[_CHANGE] = Cell(*format_points(shown), sort_key=shown.value)
        verdict = change.verdict and change.verdict.value  # None: it is watched
        cells[_VERDICT] = Cell(verdict=verdict or "", values={"verdict": verdict})
        yield Row({**shared, **cells})


def _show_score(score: float, is_shown: bool = True) -> Cell:
    return Cell(format_number(100 * score) if is_shown else "", values={"score": score})


def _describe_asking(stages: StageFindings) -> Iterator[str]:
    """Give the bits per byte of texts, and say which stages were asked differently."""
    for name in stages.benchmarks:
        changes = stages.list_changes(name)[: len(stages.steps)]  # without the change in total
        bits = [trait for _, change in changes if (trait := change.find_trait(BITS))]
        if len(bits) == len(changes):  # only benchmarks of texts have them
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
    """Say at which stage each benchmark fell."""
    for name in stages.benchmarks:
        parts = []
        for step in stages.find_losses(name):
            shown = step.findings.benchmarks[name].shown_change
            parts.append(f"{redact_leaf(step.after)} ({' '.join(format_points(shown))})")
        if parts:
            yield f"{name} fell at stage {', '.join(parts)}."
    if not any(map(stages.find_losses, stages.benchmarks)):
        yield (
            "No loss is significant. The confidence intervals show how large a loss could still be."
        )


def served_table(findings: Findings) -> Table | None:
    """Show what a tuned model lost by its weights and by how it is served; None: it is alike."""
    stages = judge_served(findings)
    if stages is None:
        return None
    table = stages_table(
        stages, "The base model, the tuned model asked like the base, and as served"
    )
    return replace(
        table,
        notes=tuple(f"The tuned model is served differently: {line}." for line in findings.serving),
    )


def render_stages_page(table: Table, stages: StageFindings, command: str) -> str:
    """Render the table and a waterfall of each benchmark as a page.

    Args:
        table: The table from `stages_table`.
        stages: What the waterfalls show.
        command: What made the page, such as "verdict --chain".
    """
    from slimdown.report.figures import PHONE_WIDTH, draw_waterfalls  # matplotlib

    figures: Sequence[Any] = ()
    if stages.whole:  # only steps of a chain add up
        caption = (
            "Each bar shows how much one stage changed the score, with its confidence interval. "
            "The steps add up to the whole change."
        )
        figures = [(draw_waterfalls(stages), draw_waterfalls(stages, PHONE_WIDTH), caption)]
    return render_table_page(table, command, figures)
