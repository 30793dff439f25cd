"""Findings or figures -> the files that people are given."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from slimdown.judging.findings import Findings
from slimdown.settings.naming import flatten
from slimdown.settings.schema import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def files_of(
    findings: Findings, name: str, run_id: str, config: RunConfig, environment: dict[str, object]
) -> dict[str, str | bytes]:
    """Report, page and plots by their paths among a run's artifacts."""
    from slimdown.showing import plots
    from slimdown.showing.findings import findings_markdown
    from slimdown.showing.page import page

    figures = {"changes": plots.forest(findings.changes), "answers": plots.answers(findings.changes)}
    if t := findings.training:
        figures["training"] = plots.training_curve(t.history, t.validation_loss_before, t.validation_loss_after)
    return {
        "report.md": findings_markdown(findings, name),
        "report.html": page(findings, name, run_id, flatten(config), environment),
        **{f"plots/{file}": content for file, content in images(figures).items()},
    }


def images(figures: "Mapping[str, Figure]") -> dict[str, bytes]:
    """Each figure as SVG and as PNG, by file name."""
    from slimdown.showing.drawing import png, svg  # matplotlib takes half a second

    stems = {name.replace("/", "-"): figure for name, figure in figures.items()}
    found = {f"{stem}.svg": svg(figure).encode() for stem, figure in stems.items()}
    return found | {f"{stem}.png": png(figure) for stem, figure in stems.items()}
