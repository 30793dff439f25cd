"""Show what a model learned and lost by the scale of its adapter."""

from collections.abc import Sequence

from slimdown.report import text
from slimdown.report.formatting import format_number, format_points
from slimdown.report.tables import Cell, Column, Row, Table
from slimdown.stats.estimates import Estimate
from slimdown.stats.scaling import ScaledFindings, build_simultaneous_curves


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
    columns = [Column("scale", is_number=True)]
    if first.training:
        columns.append(Column("validation loss", "nats a token", is_number=True))
    columns += [
        Column(text.mark_target(name, b.role), "points [95 %]", is_number=True)
        for name, b in first.benchmarks.items()
    ]
    losses = [p.findings.training.validation_loss_after for p in points if p.findings.training]
    if first.training:
        losses.insert(0, first.training.validation_loss_before)
    base_row = [Cell("0", sort_key=0.0, values={"scale": 0.0})]
    base_row += [_make_loss(losses[0])] if losses else []
    base_row += [
        Cell(f"{100 * b.primary.base.value:.1f} %", values={f"{name}.change": 0.0})
        for name, b in first.benchmarks.items()
    ]
    rows = [Row(tuple(base_row))]
    for i, point in enumerate(points):
        mark = " ←" if point.scale == chosen else ""
        values = {"scale": point.scale, "is_chosen": bool(mark)}
        cells = [Cell(f"{point.scale:g}{mark}", sort_key=point.scale, values=values)]
        cells += [_make_loss(losses[i + 1])] if losses else []
        cells += [_make_change(name, curve[i][1]) for name, curve in curves.items()]
        rows.append(Row(tuple(cells)))
    part = [f"Questions: {first.part}."] if first.part else []
    legend = (
        "Scale 0 is the base with its scores; below it stand changes. The intervals of a benchmark "
        "hold for all scales at once."
    )
    return Table(title, tuple(columns), tuple(rows), legend, tuple(part))


def _make_loss(loss: float) -> Cell:
    return Cell(format_number(loss, ".3f"), sort_key=loss, values={"validation_loss": loss})


def _make_change(name: str, change: Estimate) -> Cell:
    values = {f"{name}.change": change.value}
    values |= {f"{name}.change_low": change.low, f"{name}.change_high": change.high}
    return Cell(*format_points(change), sort_key=change.value, values=values)


def render_scaling_page(table: Table, points: Sequence[ScaledFindings]) -> str:
    """Render the table and a figure of its curves as a page."""
    from slimdown.report.figures import draw_by_setting  # matplotlib takes half a second
    from slimdown.report.pages import render

    figure = draw_by_setting("scale of the adapter", build_simultaneous_curves(points))
    caption = "Change of each benchmark by the scale; the intervals hold for all scales at once."
    figures = [(figure, caption)]
    return render("comparison.html.j2", table=table, command="scale", options="", figures=figures)
