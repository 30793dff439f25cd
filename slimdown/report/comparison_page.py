"""Show many runs, seeds or scales of one run side by side: tables, figures and pages."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, isnan
from typing import Any

from slimdown.comparison.run_comparison import Comparison, Configuration
from slimdown.comparison.run_order import series_by_setting
from slimdown.comparison.scaling import ScaledFindings, build_simultaneous_curves
from slimdown.comparison.trials import TrialOutcome
from slimdown.report import pages, text
from slimdown.report.columns import make_change_cell, show_in_comparison
from slimdown.report.formatting import EMPTY, format_count, format_number, format_points
from slimdown.report.tables import EVERYWHERE, NOT_BRIEF, Cell, Column, Row, Table, make_table
from slimdown.stats.seeds import SeedMean

_MOST_SEEDS = 8  # listed one by one
_OF_MEAN = ("value", "standard_error", "low", "high", "sd_over_seeds")


def comparison_table(
    comparison: Comparison, title: str = "", notes: Sequence[str] = (), max_rows: int = 0
) -> Table:
    """Show runs side by side, one row for each configuration: settings, changes, verdicts.

    Args:
        comparison: The compared runs.
        title: Which runs these are.
        notes: What stands below the table besides the comparison's own notes.
        max_rows: The most rows to show; 0 shows all.

    Returns:
        The table. Its records are named like the settings and metrics of a run, as shares of 1.
    """
    roles = {n: change.role for row in comparison.rows for n, change in row.changes.items()}
    headings = {name: text.mark_target(name, roles[name]) for name in comparison.benchmarks}
    shown = comparison.rows[: max_rows or None]
    rows = [_make_row(comparison, row, headings) for row in shown]
    if len(rows) < len(comparison.rows):
        notes = (f"--rows 0 shows all {len(comparison.rows):,} rows.", *notes)
    return Table(title, rows, text.COMPARISON_LEGEND, (*notes, *comparison.notes))


def _make_row(comparison: Comparison, row: Configuration, headings: Mapping[str, str]) -> Row:
    runs = row.runs
    identity: dict[str, Any] = {"run_ids": " ".join(run.run_id for run in runs), "name": row.name}
    identity |= {"experiment": runs[0].experiment, "started": runs[0].started.isoformat()}
    identity |= {"n_seeds": len(runs), "seeds": " ".join(row.seeds)}
    cells = {Column("run", max_width=36): Cell(f"{row.name} ({row.ids})", values=identity)}
    if comparison.grouped:
        cells[Column("seeds", is_setting=True)] = Cell(_describe_seeds(row.seeds))
    for key in comparison.params:
        value = row.settings.get(key, "")
        column = Column(key, max_width=30, is_filter=True, is_setting=True)
        cells[column] = Cell(value, sort_key=value or None, values={key: value})
    for name, heading in headings.items():
        column = Column(heading, "points [95 %; retained: 90 %]", is_filter=True)
        cells[column] = _make_cell(name, row)
        if name in row.changes:
            findings = [run.findings for run in runs if run.findings and name in run.changes]
            cells |= show_in_comparison(name, heading, findings)
    means = {"mean_retained_change": row.retained, "mean_target_change": row.target}
    values = {f"{n}.{k}": getattr(mean, k) for n, mean in means.items() for k in _OF_MEAN}
    mean = Cell(*_format_mean(row.retained), sort_key=row.retained.value, values=values)
    return Row(cells | {Column("mean retained", "points [95 %]"): mean})


def _describe_seeds(seeds: Sequence[str]) -> str:
    if len(seeds) > _MOST_SEEDS:
        return f"{seeds[0]} to {seeds[-1]} ({len(seeds):,})"
    return ", ".join(seeds)


def _format_mean(change: SeedMean) -> tuple[str, str]:
    """Format a change with its interval or, over several seeds, its standard deviation."""
    if isnan(change.value):
        return EMPTY, ""
    points, interval = format_points(change)
    deviation = format_number(100 * change.sd_over_seeds)
    return points, f"± {deviation}" if isfinite(change.sd_over_seeds) else interval


def _make_cell(name: str, row: Configuration) -> Cell:
    change = row.changes.get(name)
    if change is None:
        return Cell(EMPTY)
    points, interval = _format_mean(change.change)
    if len(row.runs) == 1 and (findings := row.runs[0].findings):
        interval = format_points(findings.benchmarks[name].shown_change)[1]
    heading, names = f"{name}.change", ("n", "p_value", "verdict", "verdict_corrected")
    values = {f"{heading}_{k}".removesuffix("_value"): getattr(change.change, k) for k in _OF_MEAN}
    values |= {f"{name}.{k}": getattr(change, k) for k in (*names, "forgetting_rate")}
    is_corrected = change.verdict_corrected != change.verdict
    correction = f" → {change.verdict_corrected} {text.CORRECTED}" if is_corrected else ""
    stopped = f"after {format_count(change.n, change.n_available)}" if change.is_stopped else ""
    parts = (points, interval, stopped, change.verdict, correction)
    return Cell(*parts, sort_key=change.change.value, values=values)


def search_table(comparison: Comparison, outcomes: Mapping[str, TrialOutcome], study: str) -> Table:
    """Show the finished trials of a search, one row each in the given order, with the budget.

    Args:
        comparison: The finished trials, seeds not grouped.
        outcomes: The result of each trial, by run id.
        study: The search's name.
    """
    table = comparison_table(comparison, f"search {study}")
    ordered = [outcomes[row.runs[0].run_id] for row in comparison.rows]
    rows = []
    for row, outcome in zip(table.rows, ordered, strict=True):
        excess = [f"{n} {100 * share:.1f}" for n, share in outcome.excess.items() if share > 0]
        verdict = f"beyond by {', '.join(excess)}" if excess else "within"
        if outcome.unmeasured:
            verdict = f"not measured: {', '.join(outcome.unmeasured)}"
        cell = Cell(verdict, values={"is_within_budget": outcome.is_within})
        rows.append(Row({**row.cells, Column("budget", max_width=30): cell}))
    n_within = f"{sum(outcome.is_within for outcome in ordered)} of {len(ordered)} finished trials"
    summary = f"{n_within} are within the budget as measured; the best stands first."
    return replace(table, rows=rows, notes=(summary, *table.notes))


def noise_table(comparison: Comparison) -> Table:
    """Show the noise of questions and of training, for each configuration of several seeds."""
    records, errors = [], ("question_error", "training_error", "seed_to_seed")
    for row in comparison.rows:
        settings = [f"{k}={row.settings[k]}" for k in comparison.params if k in row.settings]
        name = " ".join([row.name, *(text for text in settings if text not in row.name)])
        for benchmark, cell in row.changes.items() if len(row.runs) > 1 else ():
            record = {"run": name, "benchmark": benchmark, "seeds": len(row.runs), "n": cell.n}
            mean = cell.change
            noise = (mean.question_error, mean.training_error, mean.training_spread)
            record["mean_change"] = make_change_cell(mean)
            records.append(record | dict(zip(errors, noise, strict=True)))
    formats = dict.fromkeys(errors, lambda share: format_number(100 * share)) | {"n": format_count}
    return make_table("Noise of questions and of training", records, formats, text.NOISE_LEGEND)


def scales_table(
    points: Sequence[ScaledFindings], title: str = "", chosen: float | None = None
) -> Table:
    """Show one row for each scale, the base first.

    Args:
        points: Of scales above 0, all judged on the same questions.
        title: What stands above the table.
        chosen: The scale that is marked.

    Returns:
        The table. Its records hold the scale, the validation loss, and each benchmark's change with
        its interval as shares of 1.
    """
    first, curves = points[0].findings, build_simultaneous_curves(points)
    rows: list[dict[Column, Cell]] = []
    for i, scale in enumerate((0.0, *(point.scale for point in points))):
        is_chosen = scale == chosen
        values: dict[str, Any] = {"scale": scale, "is_chosen": is_chosen}
        cell = Cell(f"{scale:g}{' ←' * is_chosen}", sort_key=scale, values=values)
        rows.append({Column("scale", is_number=True): cell})
        if training := points[max(0, i - 1)].findings.training:
            loss = training.validation_loss_after if i else training.validation_loss_before
            cell = Cell(format_number(loss, ".3f"), sort_key=loss, values={"validation_loss": loss})
            rows[i][Column("validation loss", "nats a token", is_number=True)] = cell
    for key, curve in curves.items():
        name, _, p_right = key.partition(" ")  # a benchmark's name has no space
        benchmark, share = first.benchmarks[name], first.benchmarks[name].primary.base.value
        heading = key if p_right else text.mark_target(name, benchmark.role)
        places = NOT_BRIEF if p_right else EVERYWHERE
        column = Column(heading, "points [95 %]", is_number=True, places=places)
        if p_right and benchmark.p_right:
            share = benchmark.p_right.base
        rows[0][column] = Cell(f"{100 * share:.1f} %", values={f"{key}.change": 0.0})
        for row, (_, change) in zip(rows[1:], curve, strict=True):
            row[column] = make_change_cell(change, f"{key}.change")
    part = [f"Questions: {first.part}."] if first.part else []
    legend = (
        "Scale 0 is the base with its scores; below it stand changes. The intervals of a benchmark "
        "hold for all scales at once."
    )
    return Table(title, list(map(Row, rows)), legend, tuple(part))


def render_comparison_page(
    table: Table,
    comparison: Comparison | None = None,
    setting: str | None = None,
    options: str = "",
) -> str:
    """Render a table and its figures as a page that you can sort and filter.

    Args:
        table: What is shown.
        comparison: Where the figures come from; None draws none.
        setting: A dotted key that every benchmark's change is drawn against.
        options: The options of the command that shows this page.
    """
    from slimdown.report import figures  # matplotlib takes half a second

    shown = []
    if comparison and any(isfinite(row.target.value) for row in comparison.rows):
        caption = "Each point is a row of the table: up is learned, right is forgotten."
        shown.append((figures.draw_trade_offs(comparison.rows), caption))
    if comparison and setting:
        caption = "Means of the runs that share a value, with their intervals."
        series = series_by_setting(comparison, setting)
        shown.append((figures.draw_by_setting(setting, series), caption))
    closing = text.HOW_TO_CONFIRM if comparison and comparison.holds_out else ""
    values = {"table": table, "options": options, "figures": shown, "closing": closing}
    return pages.render("comparison.html.j2", **values)


def render_scaling_page(table: Table, points: Sequence[ScaledFindings]) -> str:
    """Render the table and a figure of its curves as a page."""
    from slimdown.report import figures

    figure = figures.draw_by_setting("scale of what was trained", build_simultaneous_curves(points))
    caption = "Change of each benchmark by the scale; the intervals hold for all scales at once."
    values = {"command": "scale", "options": "", "figures": [(figure, caption)], "closing": ""}
    return pages.render("comparison.html.j2", table=table, **values)
