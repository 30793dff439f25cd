"""A run's findings -> the files that its record keeps for people to read."""

from slimdown.judging.findings import Findings
from slimdown.settings.naming import flatten
from slimdown.settings.schema import RunConfig
from slimdown.showing.console import markdown
from slimdown.showing.page import page
from slimdown.showing.plots import plot_files


def files_of(
    findings: Findings, name: str, run_id: str, config: RunConfig, environment: dict[str, object]
) -> dict[str, str | bytes]:
    """Report, page and plots by their paths among a run's artifacts."""
    shown = page(name, run_id, findings, flatten(config), environment)
    return {"report.md": markdown(name, findings), "report.html": shown, **plot_files(findings)}
