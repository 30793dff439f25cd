"""Show what a model learned and lost by the scale of its adapter."""

from collections.abc import Sequence

from slimdown.report import text
from slimdown.report.findings_report import make_change_cell
from slimdown.report.formatting import format_number
from slimdown.report.tables import Cell, Column, Row, Table
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
    rows = [[Cell("0", sort_key=0.0, values={"scale": 0.0})]]
    for point in points:
        mark = " ←" if point.scale == chosen else ""
        values = {"scale": point.scale, "is_chosen": bool(mark)}
        rows.append([Cell(f"{point.scale:g}{mark}", sort_key=point.scale, values=values)])
    if first.training:
        columns.append(Column("validation loss", "nats a token", is_number=True))
        losses = [first.training.validation_loss_before]
        losses += [p.findings.training.validation_loss_after for p in points if p.findings.training]
        for row, loss in zip(rows, losses, strict=True):
            values = {"validation_loss": loss}
            row.append(Cell(format_number(loss, ".3f"), sort_key=loss, values=values))
    for name, benchmark in first.benchmarks.items():
        heading = text.mark_target(name, benchmark.role)
        columns.append(Column(heading, "points [95 %]", is_number=True))
        base = f"{100 * benchmark.primary.base.value:.1f} %"
        rows[0].append(Cell(base, values={f"{name}.change": 0.0}))
        for row, (_, change) in zip(rows[1:], curves[name], strict=True):
            row.append(make_change_cell(change, f"{name}.change"))
    part = [f"Questions: {first.part}."] if first.part else []
    legend = (
        "Scale 0 is the base with its scores; below it stand changes. The intervals of a benchmark "
        "hold for all scales at once."
    )
    return Table(title, tuple(columns), tuple(Row(tuple(row)) for row in rows), legend, tuple(part))


def render_scaling_page(table: Table, points: Sequence[ScaledFindings]) -> str:
    """Render the table and a figure of its curves as a page."""
    from slimdown.report.figures import draw_by_setting  # matplotlib takes half a second
    from slimdown.report.pages import render

    figure = draw_by_setting("scale of the adapter", build_simultaneous_curves(points))
    caption = "Change of each benchmark by the scale; the intervals hold for all scales at once."
    figures = [(figure, caption)]
    return render("comparison.html.j2", table=table, command="scale", options="", figures=figures)
