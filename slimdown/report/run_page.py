"""Render findings as `report.html` and `report.md`, with `answers.html` beside them."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Any

from slimdown.config.naming import flatten
from slimdown.config.schema import RunConfig
from slimdown.judging.budgets import Gate
from slimdown.judging.findings import Findings
from slimdown.report import findings_report, formatting, pages, tables, text
from slimdown.report.answers_page import render_answers_page
from slimdown.report.stages_report import served_table
from slimdown.utils.scoring import REFUSALS
from slimdown.utils.secrets import redact_leaf, redact_leaves


def render_run_files(
    findings: Findings,
    config: RunConfig,
    info: Any,
    run_id: str,
    gate: Gate | None = None,
) -> dict[str, str]:
    """Render what a run leaves for people to read.

    Args:
        findings: What the run found.
        config: Its settings.
        info: Its `name` and `environment` (versions and machine).
        run_id: The record's id.
        gate: Of the budgets that the settings name.

    Returns:
        The contents by path: report.html, report.md, and answers.html where the findings hold the
        answers; findings that were read from a record do not.
    """
    table = findings_report.findings_table(findings, gate=gate)
    about = config, run_id, info.environment, gate
    answers, served = {}, served_table(findings)
    if findings.base and findings.tuned:
        page = render_answers_page(findings, info.name, "report.html", "samples/")
        answers["answers.html"] = page
    return answers | {
        "report.html": render_page(findings, info.name, *about, "answers.html"),
        "report.md": pages.render(
            "report.md.j2",
            brief=tables.write_table(table.brief, "markdown"),
            note=redact_leaf(config.note or ""),
            table=tables.write_table(replace(table, legend="", outcome=""), "markdown"),
            served=tables.write_table(served, "markdown") if served else "",
            sentences=text.describe_findings(findings, False, gate),
            costs=_format_all(findings.costs),
        ),
    }


def render_page(
    findings: Findings,
    name: str,
    config: RunConfig | None = None,
    run_id: str = "",
    environment: Mapping[str, object] | None = None,
    gate: Gate | None = None,
    answers: str = "",
) -> str:
    """Render the findings as one HTML page that loads nothing from anywhere.

    Args:
        findings: What is shown.
        name: What the run is called.
        config: The settings, where a run had some.
        run_id: The record's id, where there is one.
        environment: Versions and machine.
        gate: Of a gate: its outcome stands at the top.
        answers: The file beside the page that shows every changed answer.

    Returns:
        The page. Models' answers are escaped: markup in them is shown and never run.
    """
    from slimdown.report.figures import PHONE_WIDTH, draw_changes  # matplotlib takes half a second

    settings = redact_leaves(flatten(config))[0] if config else {}
    about = {k: redact_leaf(v) for k, v in text.describe_run(config).items()} if config else {}
    return pages.render(
        "report.html.j2",
        findings=findings,
        name=redact_leaf(name),
        about=about | {"date": f"{date.today():%Y-%m-%d}"},
        run_id=run_id,
        outcome=text.describe_outcome(gate) if gate else "",
        outcome_word=text.OUTCOMES[gate.outcome].split()[0].lower() if gate else "",
        summary=[
            *(text.describe_budgets(gate) if gate else ()),
            *text.explain_undecided(findings),
            *text.list_caveats(findings),
        ],
        results=findings_report.findings_table(findings, gate=gate).at(tables.Place.page),
        figure=draw_changes(findings),
        phone_figure=draw_changes(findings, PHONE_WIDTH),
        served=served.at(tables.Place.page) if (served := served_table(findings)) else None,
        settings=_format_all({k: v for k, v in settings.items() if v is not None}),
        environment=_format_all(environment or {}),
        costs=_format_all(findings.costs),
        refusals=REFUSALS,
        answers=answers,
    )


def _format_all(values: Mapping[str, object]) -> dict[str, str]:
    """Write settings, versions or costs as a person reads them."""
    units, written = {"seconds": formatting.format_duration, "bytes": formatting.format_bytes}, {}
    for key, value in values.items():
        name, _, unit = key.rpartition("_")
        if unit in units and isinstance(value, int | float):
            written[name.replace("_", " ")] = units[unit](value)
        else:
            parts = value if isinstance(value, list | tuple) else [value]
            written[key] = redact_leaf(", ".join(map(str, parts)))
    return written
