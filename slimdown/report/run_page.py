"""Render findings as a page, `report.html`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date

from slimdown.judging.answer_traits import BITS
from slimdown.judging.budgets import Gate
from slimdown.judging.findings import Findings
from slimdown.report import findings_report, formatting, pages, tables, text
from slimdown.report.answers_page import MOST_SHOWN
from slimdown.report.stages_report import served_table
from slimdown.utils.secrets import redact_leaf, redact_leaves

_TRAIT_NOTES = {
    "empty": "Empty: the answer has no text.",
    "unreadable": "Unreadable: the benchmark’s own filter finds no answer in the text; another "
    "filter may find one.",
    "other script": "Other script: most letters belong to another script than those of the base "
    "model’s answer.",
    "refusal": "Refusal: the first 60 words say, in English, that the model will not do what is "
    "asked.",
}
"""What a page says of those traits of answers whose name does not explain them."""


@dataclass(frozen=True)
class RunDescription:
    """How a run was made; all is empty where models were judged without a run."""

    facts: Mapping[str, str] = field(default_factory=dict)  # by heading, such as "model", "method"
    settings: Mapping[str, object] = field(default_factory=dict)  # all of them, by dotted key
    environment: Mapping[str, object] = field(default_factory=dict)  # by name: versions and machine


def render_page(
    findings: Findings,
    name: str,
    description: RunDescription | None = None,
    *,
    run_id: str = "",
    gate: Gate | None = None,
    answers: str = "",
) -> str:
    """Render the findings as one HTML page that loads nothing from anywhere.

    Args:
        findings: What is shown.
        name: What the run is called, or the two models that were judged.
        description: How the run was made; None if there was no run.
        run_id: The run's id in the record; empty if there is none.
        gate: The budgets, whose outcome stands at the top; None if there are none.
        answers: The name of the file beside the page that shows every changed answer; empty if
            there is none.

    Returns:
        The page. Models' answers are escaped: markup in them is shown and never run.
    """
    from slimdown.report.figures import PHONE_WIDTH, draw_changes  # matplotlib takes half a second

    description = description or RunDescription()
    settings, _ = redact_leaves(dict(description.settings))  # secrets are hidden
    served = served_table(findings)
    facts = {key: redact_leaf(value) for key, value in description.facts.items()}
    return pages.render(
        "report.html.j2",
        findings=findings,
        name=redact_leaf(name),
        facts=facts | {"date": f"{date.today():%Y-%m-%d}"},
        run_id=run_id,
        outcome=text.describe_outcome(gate) if gate else "",
        # A class of the page's style: "passed", "failed", or "cannot".
        outcome_word=text.OUTCOMES[gate.outcome].split()[0].lower() if gate else "",
        # The table shows the verdicts already.
        summary=[
            *(text.describe_budgets(gate) if gate else ()),
            *text.explain_undecided(findings),
            *text.list_caveats(findings),
        ],
        results=findings_report.findings_table(findings, gate=gate).at(tables.Place.page),
        figure=draw_changes(findings),
        phone_figure=draw_changes(findings, PHONE_WIDTH),
        served=served.at(tables.Place.page) if served else None,
        settings=format_all({k: v for k, v in settings.items() if v is not None}),
        environment=format_all(description.environment),
        costs=format_all(findings.costs),
        trait_notes=_TRAIT_NOTES,
        bits=BITS,  # by this name the page knows the trait that is no share of answers
        answers=answers,
        most_answers=MOST_SHOWN,
    )


def format_all(values: Mapping[str, object]) -> dict[str, str]:
    """Write settings, versions or costs as a person reads them.

    A number under a key such as `base_evaluation_seconds` is written with its unit, and its key
    becomes `base evaluation`. All other keys stay. Secrets in values are hidden.

    Args:
        values: Values of any kind by name or dotted key; a list is written with commas.

    Returns:
        The texts by key.
    """
    units = {"seconds": formatting.format_duration, "bytes": formatting.format_bytes}
    written = {}
    for key, value in values.items():
        name, _, unit = key.rpartition("_")
        if unit in units and isinstance(value, int | float):
            written[name.replace("_", " ")] = units[unit](value)
        else:
            parts = value if isinstance(value, list | tuple) else [value]
            written[key] = redact_leaf(", ".join(map(str, parts)))
    return written
