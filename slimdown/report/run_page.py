"""Findings -> `report.html`, `report.md` and figures: what you open, print or send."""

import re
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from slimdown.config.naming import flatten
from slimdown.config.schema import RunConfig
from slimdown.report import figures, text
from slimdown.report.findings_report import findings_table
from slimdown.report.formatting import EMPTY, format_bytes, format_duration, format_number
from slimdown.report.pages import render
from slimdown.report.tables import write_table
from slimdown.utils.secrets import redact

if TYPE_CHECKING:
    from slimdown.stats.findings import Findings


def render_run_files(
    findings: "Findings", config: RunConfig, info: Any, run_id: str
) -> dict[str, str | bytes]:
    """Renders what a run leaves for people to read.

    Args:
        findings: What the run found.
        config: Its settings.
        info: Its `name` and `environment` (versions and machine).
        run_id: The record's id.

    Returns:
        The contents by path: report.html, report.md, and each figure below plots/.
    """
    drawn = _draw_figures(findings)
    svgs = {f"plots/{name}.svg": figures.write_svg(f).encode() for name, f in drawn.items()}
    pngs = {f"plots/{name}.png": figures.write_png(f) for name, f in drawn.items()}
    return {
        "report.html": render_page(findings, info.name, config, run_id, info.environment),
        "report.md": render(
            "report.md.j2",
            table=write_table(findings_table(findings, info.name), "markdown"),
            sentences=text.describe_findings(findings),
            costs=_format_all(findings.costs),
        ),
        **svgs,
        **pngs,
    }


def render_page(
    findings: "Findings",
    name: str,
    config: RunConfig | None = None,
    run_id: str = "",
    environment: Mapping[str, object] | None = None,
) -> str:
    """Renders the findings as one HTML page that loads nothing from anywhere.

    Args:
        findings: What is shown.
        name: What the run is called.
        config: The settings, where a run had some.
        run_id: The record's id, where there is one.
        environment: Versions and machine.

    Returns:
        The page. Models' answers are escaped: markup in them is shown and never run.
    """
    settings = flatten(config) if config else {}
    about = {k: redact(v) for k, v in text.describe_run(config).items()} if config else {}
    return render(
        "report.html.j2",
        findings=findings,
        name=redact(name),
        about=about | {"date": f"{date.today():%Y-%m-%d}"},
        run_id=run_id,
        summary=[*text.summarize(findings), *text.list_caveats(findings)],
        results=findings_table(findings),
        figures=_draw_figures(findings),
        settings=_format_all({k: v for k, v in settings.items() if v is not None}),
        environment=_format_all(environment or {}),
        costs=_format_all(findings.costs),
    )


def _draw_figures(findings: "Findings") -> dict[str, Any]:
    drawn = {"changes": figures.draw_changes(findings)}
    if training := findings.training:
        before, after = training.validation_loss_before, training.validation_loss_after
        drawn["training"] = figures.draw_training(training.history, before, after)
    return drawn


def _format_all(values: Mapping[str, object]) -> dict[str, str]:
    names = {key: re.sub("_(seconds|bytes)$", "", key) for key in values}
    return {names[key]: _format_value(key, value) for key, value in values.items()}


def _format_value(key: str, value: object) -> str:
    """A setting, a version or a cost as a person reads it."""
    if value is None:
        return EMPTY
    if isinstance(value, list | tuple):
        return ", ".join(_format_value("", v) for v in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return redact(str(value))
    if key.endswith("_seconds"):
        return format_duration(value)
    return format_bytes(value) if key.endswith("_bytes") else format_number(value, "g")
