"""A column is one line of one list, and stands wherever it is asked for."""

import json
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from builders import Capture, Patch
from report_builders import Findings, judge_pairs, make_usual, written

from slimdown.judging.budgets import Gate, check_budgets
from slimdown.report import columns, console, text
from slimdown.report.findings_report import findings_table, write_junit
from slimdown.report.formatting import FORMATS
from slimdown.report.run_page import render_page
from slimdown.report.tables import Cell, Place, write_table
from slimdown.tracking.metrics_and_tags import collect_finding_metrics


@pytest.fixture(scope="module")
def findings() -> Findings:
    return judge_pairs(make_usual())


def show_everywhere(findings: Findings, capsys: Capture) -> dict[Place, str]:
    capsys.readouterr()
    console.show_findings(findings)
    table = findings_table(findings)
    return {
        Place.console: capsys.readouterr().out,
        Place.page: render_page(findings, "a run"),
        Place.markdown: write_table(table, "markdown"),
        Place.json: write_table(table, "json"),
        Place.mlflow: json.dumps(collect_finding_metrics(findings)),
    }


@pytest.mark.heavy  # MLflow's names
@pytest.mark.parametrize("place", Place)
def test_one_line_adds_a_column_where_it_is_asked_for(
    place: Place, findings: Findings, monkeypatch: Patch, capsys: Capture
) -> None:
    def show(row: columns.FindingRow) -> Cell:
        return Cell(f"{row.benchmark.n} flights", values={"flights": row.benchmark.n})

    line = columns.FindingColumn("flights", show=show)
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS, line))
    assert all("flights" in shown for shown in show_everywhere(findings, capsys).values())
    line = replace(line, places=frozenset({place}))
    monkeypatch.setattr(columns, "COLUMNS", (*columns.COLUMNS[:-1], line))
    shown = show_everywhere(findings, capsys)
    assert [name for name in Place if "flights" in shown[name]] == [place]
    if place is Place.mlflow:
        assert collect_finding_metrics(findings)["flights/maths"] == 80


@pytest.mark.parametrize(
    ("budget", "word"), [(0.9, "PASSED"), (0.02, "FAILED"), (0.5, "CANNOT TELL")]
)
def test_outcomes_come_first(budget: float, word: str, findings: Findings, capsys: Capture) -> None:
    off = [name for name in findings.benchmarks if name != "maths"]
    gate = Gate(tuple(check_budgets(findings, {"maths": budget}, off=off)), tuple(off))
    outcome = text.describe_outcome(gate)
    assert outcome.startswith(f"{word}: maths ")
    assert re.findall(r"\d+(?:\.\d+)?", outcome)[1:] == [f"{100 * budget:g}"]
    console.show_findings(findings, "a → b", gate)
    assert capsys.readouterr().out.startswith(f"{outcome}\na → b\n")
    table = findings_table(findings, "a → b", gate=gate)
    written_as = {format: write_table(table, format) for format in FORMATS}
    assert written_as["table"].startswith(f"{outcome}\n")
    assert written_as["markdown"].startswith(f"**{outcome}**\n")
    assert outcome in written_as["html"].partition("<table")[0]
    content = json.loads(written_as["json"])
    assert (content["outcome"], content["summary"]) == (word.lower(), outcome)
    assert content["exit_code"] == gate.outcome
    assert f",{word.lower()}," in written_as["csv"]
    assert f"<system-out>{outcome}" in write_junit(gate, "a → b")
    page = render_page(findings, "a → b", gate=gate)
    assert page.index(outcome) < page.index("<main>")
    assert "FAILED" not in render_page(findings, "a → b")


def test_the_name_of_a_benchmark_does_not_break_the_xml() -> None:
    name = "a\x1b[2J"
    nothing = written([0.0] * 40)
    checks = check_budgets(judge_pairs({name: (nothing, nothing)}), {"": 0.02})
    assert name in checks[0].reason
    suite = ElementTree.fromstring(write_junit(Gate(tuple(checks)), name))
    assert str(suite[0][0].get("message")).endswith("--max-loss a␛[2J=off")


def test_the_outcome_names_the_loss_that_is_furthest_beyond_or_nearest() -> None:
    n = 200
    pairs = {
        f"lost_{k}": (written([1.0] * n), written([0.0] * k + [1.0] * (n - k)))
        for k in (20, 40, 60)
    }
    findings = judge_pairs(pairs)
    for budgets, name in (
        ({"": 0.02}, "lost_60"),
        ({"": 0.02, "lost_60": 0.25}, "lost_40"),
        ({"lost_20": 0.9, "lost_40": 0.5, "lost_60": 0.9}, "lost_40"),
    ):
        outcome = text.describe_outcome(Gate(tuple(check_budgets(findings, budgets))))
        assert f": {name} " in outcome


def test_a_rate_with_an_interval_of_more_than_100_points_is_not_shown() -> None:
    wide = written([1.0] + [0.0] * 9), written([0.0, 1.0] * 5)
    for pair, is_shown in ((wide, False), (make_usual()["steady"], True)):
        findings = judge_pairs({"a": pair})
        rate = findings.benchmarks["a"].forgetting_rate
        assert rate is None or (rate.high - rate.low <= 1) is is_shown
        [record, _] = findings_table(findings).records
        assert (record["forgetting_rate"] is not None) is is_shown
