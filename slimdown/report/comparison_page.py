"""Show many runs, seeds or scales of one run side by side: tables, figures and pages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite, isnan
from typing import Any

from slimdown.comparison.run_comparison import Comparison, Configuration
from slimdown.comparison.run_records import KEPT, LEARNED
from slimdown.comparison.scaling import ScaledFindings, build_simultaneous_curves
from slimdown.comparison.trials import TrialOutcome
from slimdown.comparison.value_verdicts import JudgedMean, judge_configurations
from slimdown.judging.verdicts import Verdict
from slimdown.report import text
from slimdown.report.brief_comparison import (
    describe_choice,
    describe_claims,
    find_settings,
    head_columns,
    head_comparison,
)
from slimdown.report.columns import make_change_cell
from slimdown.report.formatting import (
    EMPTY,
    describe_model_place,
    format_count,
    format_number,
    format_points,
)
from slimdown.report.pages import render_table_page
from slimdown.report.tables import EVERYWHERE, NOT_BRIEF, Cell, Column, Place, Row, Table

_MOST_SEEDS = 8  # seeds or runs of a row that are listed one by one
_MOST_CLAIMED = 12  # differences that a page names
_MOST_FILTERED = 5  # benchmarks whose verdicts a page offers as filters; above, those of the means
_UNCERTAINTIES = ("standard_error", "low", "high", "sd_over_seeds")  # attributes of a `SeedMean`
_NOT_ON_PAGES = NOT_BRIEF - {Place.page}


def comparison_table(
    comparison: Comparison, title: str = "", notes: Sequence[str] = (), max_rows: int = 0
) -> Table:
    """Show runs side by side, one row for each configuration: settings, changes, verdicts.

    Args:
        comparison: The compared runs.
        title: Which runs these are.
        notes: Notes below the table, above the comparison's own.
        max_rows: The most rows to show; 0 shows all.

    Returns:
        The table. Its records hold the settings by their keys, and shares of 1 by names such as
        "gsm8k.change".
    """
    judged = judge_configurations(comparison)  # for each row, its means by column
    settings = find_settings(comparison)
    headings = head_columns(comparison)
    values = [tuple(row.settings.get(key) for key in settings) for row in comparison.rows]
    # Whether the settings tell all rows apart.
    are_unique = bool(settings) and len(set(values)) == len(values)
    rows = []
    n_shown = max_rows or len(comparison.rows)
    for row, means in list(zip(comparison.rows, judged, strict=True))[:n_shown]:
        run_cells = _show_run(row, are_unique)
        cells = _show_settings(comparison, row, settings) | _show_changes(row, means, headings)
        cells |= _show_noise(row, headings)
        # If the settings name the rows, the runs come last.
        rows.append(Row(cells | run_cells if are_unique else run_cells | cells))
    if len(rows) < len(comparison.rows):
        notes = (f"Add --rows 0 to see all {len(comparison.rows):,} rows.", *notes)
    notes = (*notes, *comparison.notes, *_describe_corrections(comparison, judged))
    return Table(title, rows, text.COMPARISON_LEGEND, notes)


def _describe_corrections(
    comparison: Comparison, judged: Sequence[Mapping[str, JudgedMean]]
) -> Iterator[str]:
    """Say how many verdicts of single runs become undecided in the table; nothing if none does.

    Args:
        comparison: The compared runs.
        judged: For each row, its means by column.
    """
    holds = list[bool]()  # for each verdict of a single run, whether it is the same in the table
    for row, means in zip(comparison.rows, judged, strict=True):
        if len(row.runs) == 1:
            for name, change in row.runs[0].changes.items():
                if change.verdict not in (None, Verdict.undecided):  # these claim nothing
                    holds.append(means[name].verdict is change.verdict)
    n_claims = sum(mean.verdict is not None for means in judged for mean in means.values())
    if not all(holds):
        yield (
            f"{text.CORRECTED} {holds.count(False):,} of {len(holds):,} verdicts become undecided "
            f"when they are corrected for all {n_claims:,} changes in this table (Holm)."
        )


def _show_run(row: Configuration, are_unique: bool) -> dict[Column, Cell]:
    """Show which runs a row stands for, and where their adapters are.

    Args:
        row: The row.
        are_unique: Whether the settings tell all rows apart. Then they name the row, so the cell of
            the runs holds only a name that a user gave, and the ids.
    """
    runs = row.runs
    identity: dict[str, Any] = {
        "run_ids": " ".join(run.run_id for run in runs),
        "name": row.name,
        "experiment": runs[0].experiment,
        "started": runs[0].started.isoformat(),
        "note": " ".join(dict.fromkeys(run.note for run in runs if run.note)),
        "n_seeds": len(runs),
        "seeds": " ".join(row.seeds),
    }
    ids = ", ".join(run.run_id[:8] for run in runs)
    if len(runs) > _MOST_SEEDS:
        ids = row.id_or_count
    short_name = f"{row.given_name} ({ids})" if row.given_name else ids
    name = short_name if are_unique else f"{row.name} ({row.id_or_count})"
    trained = [run for run in runs if run.model_files]  # others only measured a model
    places = [describe_model_place(run.model_files, run.run_id) for run in trained]
    adapters = " ".join(run.model_files for run in trained)
    return {
        Column("run", max_width=36): Cell(name, detail=identity["note"], values=identity),
        Column("adapter", max_width=36, places=_NOT_ON_PAGES): Cell(
            ", ".join(places[:_MOST_SEEDS]), values={"adapters": adapters}
        ),
    }


def _show_settings(
    comparison: Comparison, row: Configuration, settings: Sequence[str]
) -> dict[Column, Cell]:
    """Show the varied settings and the seeds; files also have the other settings that differ.

    Args:
        comparison: The compared runs, with all settings in which they differ.
        row: The row that is shown.
        settings: The varied settings, in the order of their columns.
    """
    cells = {}
    others = [key for key in comparison.params if key not in settings]
    for key in (*settings, *others):
        value = row.settings.get(key, "")
        is_varied = key in settings
        column = Column(
            key,
            max_width=30,
            is_filter=is_varied,
            leave_out_rank=0 if is_varied else 3,
            places=EVERYWHERE if is_varied else _NOT_ON_PAGES,
        )
        # The value is a text. If it is empty, the row comes last when it is sorted by this column.
        cells[column] = Cell(value, sort_key=value or None, values={key: value})
    if comparison.grouped:  # otherwise the seed is among the settings, if it differs
        cells[Column("seeds", leave_out_rank=2)] = Cell(_describe_seeds(row.seeds))
    return cells


def _show_changes(
    row: Configuration, judged: Mapping[str, JudgedMean], headings: Mapping[str, str]
) -> dict[Column, Cell]:
    """Show the changes of a row by column.

    Without a target benchmark, the loss on held-out rows shows what was learned.

    Args:
        row: The row that is shown.
        judged: Its means by column; a column that it did not measure is missing.
        headings: The headings of all columns: `learned`, benchmarks, `kept`.
    """
    cells: dict[Column, Cell] = {}
    n_benchmarks = len(set(headings) - {LEARNED, KEPT})
    for name, heading in headings.items():
        # A page offers the verdicts of this column as a filter.
        is_filter = name in (LEARNED, KEPT) or n_benchmarks <= _MOST_FILTERED
        column = Column(heading, "points", is_filter=is_filter)
        cells[column] = _show_change(row, name, judged.get(name))
    if isnan(row.target.value):  # no target was measured
        loss = row.learned_loss
        column = Column("learned_loss", "nats per token", is_number=True, places=NOT_BRIEF)
        loss_text = "" if isnan(loss) else format_number(loss, ".3f")
        cells[column] = Cell(loss_text, sort_key=loss, values={"learned_loss": loss})
    return cells


def _show_noise(row: Configuration, headings: Mapping[str, str]) -> dict[Column, Cell]:
    """Show the noise of each benchmark's mean change by its source; pages leave it out.

    It is a standard error over the seeds (`SeedMean`), and is not known for a single seed.

    Args:
        row: The row that is shown.
        headings: The headings of all columns.
    """
    cells: dict[Column, Cell] = {}
    for source, attribute in (("questions", "question_error"), ("training", "training_error")):
        errors = {name: getattr(mean.change, attribute) for name, mean in row.changes.items()}
        known = {headings[name]: error for name, error in errors.items() if isfinite(error)}
        parts = [f"{heading} {format_number(100 * error)}" for heading, error in known.items()]
        values = {f"{name}.{attribute}": error for name, error in errors.items()}
        column = Column(f"noise of {source}", "points", max_width=30, places=_NOT_ON_PAGES)
        cells[column] = Cell(", ".join(parts), values=values)
    return cells


def _describe_seeds(seeds: Sequence[str]) -> str:
    """List the seeds; if there are many, only the first, the last, and their number."""
    if len(seeds) > _MOST_SEEDS:
        return f"{seeds[0]} to {seeds[-1]} ({len(seeds):,})"
    return ", ".join(seeds)


def _show_change(row: Configuration, name: str, judged: JudgedMean | None) -> Cell:
    """Show the mean change in one column over a row's seeds, with its interval and verdict.

    A single run's cell shows a benchmark as the run's own report does, with its verdict and its
    interval. If this verdict does not hold once it is corrected for the whole table, the cell says
    so. All other cells show the corrected verdict, and the interval that agrees with it.

    Args:
        row: The row.
        name: The column: a benchmark, or `learned` or `kept`, the mean of several.
        judged: The row's mean in this column; None if no run measured it.
    """
    if judged is None:
        return Cell(EMPTY)
    change = row.changes.get(name)  # None for `learned` and `kept`
    role_means = {LEARNED: row.target, KEPT: row.retained}
    uncorrected = change.change if change else role_means[name]
    shown = judged.shown  # with the interval that belongs to the verdict which is shown
    values: dict[str, Any] = {f"{name}.change": uncorrected.value}
    values |= {f"{name}.change_{key}": getattr(uncorrected, key) for key in _UNCERTAINTIES}
    if change:
        keys = ("n", "p_value", "verdict", "forgetting_rate")
        values |= {f"{name}.{key}": getattr(change, key) for key in keys}
    values |= {f"{name}.shown_low": shown.low, f"{name}.shown_high": shown.high}
    corrected_verdict = str(judged.verdict or "")  # empty: watched
    values[f"{name}.verdict_corrected"] = corrected_verdict
    if isnan(shown.value):
        return Cell(EMPTY, values=values)
    verdict, correction, detail = corrected_verdict, "", ""
    if change and len(row.runs) == 1:
        verdict = change.verdict  # that of the run's own report
        if corrected_verdict != verdict:
            correction = f" → {corrected_verdict} {text.CORRECTED}"
    if change and change.is_stopped:
        detail = f"after {format_count(change.n, change.n_available)}"
    points, interval = format_points(shown)
    return Cell(
        points,
        interval,
        detail=detail,
        verdict=verdict,
        correction=correction,
        sort_key=shown.value,
        values=values,
    )


def search_table(comparison: Comparison, outcomes: Mapping[str, TrialOutcome], study: str) -> Table:
    """Show the finished trials of a search, one row each in the given order, with the budget.

    Args:
        comparison: The finished trials, a row for each run; the best one comes first.
        outcomes: The result of each trial, by run id.
        study: The search's name.
    """
    table = comparison_table(comparison, f"search {study}")
    ordered = [outcomes[row.runs[0].run_id] for row in comparison.rows]
    rows = []
    for row, outcome in zip(table.rows, ordered, strict=True):
        # The benchmarks that lost more than they may, with the points beyond their budget.
        excess = [f"{n} {100 * share:.1f}" for n, share in outcome.excess.items() if share > 0]
        budget_text = f"exceeded: {', '.join(excess)} points" if excess else "within"
        if outcome.unmeasured:  # the trial is not within, whatever the others lost
            budget_text = f"not measured: {', '.join(outcome.unmeasured)}"
        cell = Cell(budget_text, values={"is_within_budget": outcome.is_within})
        rows.append(Row({**row.cells, Column("budget", max_width=30): cell}))
    n_within = sum(outcome.is_within for outcome in ordered)
    summary = (
        f"{n_within} of {len(ordered)} finished trials are within the budget as measured. The best "
        "trial comes first."
    )
    return replace(table, rows=rows, notes=(summary, *table.notes))


def scales_table(
    points: Sequence[ScaledFindings], title: str = "", chosen: float | None = None
) -> Table:
    """Show one row for each scale, the base first.

    Args:
        points: The findings at scales above 0, all judged on the same questions.
        title: What stands above the table.
        chosen: The scale that is marked with an arrow; None marks none.

    Returns:
        The table. Its records hold the scale, the validation loss, and each benchmark's change with
        its interval as shares of 1.
    """
    first = points[0].findings
    curves = build_simultaneous_curves(points)  # by benchmark, each scale with the change there
    scales = [0.0, *(point.scale for point in points)]
    # The base has the loss before the training, which is the same in the findings of all points.
    trainings = [first.training, *(point.findings.training for point in points)]
    rows: list[dict[Column, Cell]] = []  # the base, then one for each point
    for scale, training in zip(scales, trainings, strict=True):
        is_chosen = scale == chosen
        values: dict[str, Any] = {"scale": scale, "is_chosen": is_chosen}
        cell = Cell(f"{scale:g}{' ←' if is_chosen else ''}", sort_key=scale, values=values)
        rows.append({Column("scale", is_number=True): cell})
        if training:  # None if another tool trained the model
            loss = training.validation_loss_after if scale else training.validation_loss_before
            cell = Cell(format_number(loss, ".3f"), sort_key=loss, values={"validation_loss": loss})
            rows[-1][Column("validation loss", "nats per token", is_number=True)] = cell
    for name, curve in curves.items():
        benchmark = first.benchmarks[name]
        heading = text.mark_target(name, benchmark.role)
        column = Column(heading, "points [95 %]", is_number=True)
        # The base's row shows a score to people. For programs its change is 0.
        score = f"{100 * benchmark.primary.base.value:.1f} %"
        rows[0][column] = Cell(score, values={f"{name}.change": 0.0})
        for row, (_, change) in zip(rows[1:], curve, strict=True):
            row[column] = make_change_cell(change, f"{name}.change")
    notes = (f"Questions: {first.part}.",) if first.part else ()
    legend = (
        "Scale 0 is the base model: its row shows scores, and the other rows show changes. The "
        "confidence intervals of a benchmark hold for all scales at once."
    )
    return Table(title, list(map(Row, rows)), legend, notes)


def render_comparison_page(table: Table, comparison: Comparison, setting: str | None = None) -> str:
    """Render a table as a page: what is shown to differ, the table, and its figures.

    Args:
        table: What is shown; you can sort and filter it.
        comparison: Where the sentences on differences and the figures come from.
        setting: A dotted key that changes are drawn against; None: the first that was varied.
    """
    from slimdown.report import comparison_figures  # matplotlib takes half a second

    return render_table_page(
        table,
        "compare",
        comparison_figures.draw_comparison(comparison, setting),
        headings=head_comparison(comparison, setting),
        answer=list(describe_claims(comparison, setting, _MOST_CLAIMED)),
        closing=list(describe_choice(comparison)),
    )


def render_scaling_page(table: Table, points: Sequence[ScaledFindings]) -> str:
    """Render the table and a figure of its curves as a page."""
    from slimdown.report.figures import PHONE_WIDTH, draw_scales  # matplotlib

    curves = build_simultaneous_curves(points)
    caption = "Change of each benchmark at each scale. The intervals hold for all scales at once."
    figure, phone_figure = draw_scales(curves), draw_scales(curves, PHONE_WIDTH)
    return render_table_page(table, "scale", [(figure, phone_figure, caption)])
