"""A watched benchmark is shown everywhere with its change, and nowhere with a verdict."""

import re
from typing import Any

import numpy as np
from builders import make_run, make_texts
from report_builders import judge_pairs, make_usual

from slimdown.comparison.run_comparison import compare_runs
from slimdown.config.benchmark_config import Role
from slimdown.judging.findings import Findings
from slimdown.report.brief_comparison import describe_briefly
from slimdown.report.comparison_page import comparison_table, render_comparison_page
from slimdown.report.figures import draw_changes
from slimdown.report.findings_report import findings_table
from slimdown.report.run_page import render_page
from slimdown.report.tables import write_table
from slimdown.report.text import describe_findings, explain_table, summarize_briefly
from slimdown.report.verdict_styles import STYLES
from slimdown.tracking.metrics_and_tags import (
    collect_finding_metrics,
    describe_headline,
    describe_verdicts,
)

TEXTS = make_texts(np.full(60, 0.5)), make_texts(np.full(60, 0.25))  # 1 bit a byte, and 2
BITS = "1.000 → 2.000 (+100.0 %)"
WORDS = re.compile("|".join(STYLES))


def judge_with_texts(*names: str) -> Findings:
    usual = make_usual()
    return judge_pairs({name: usual[name] for name in names or usual} | {"docs": TEXTS})


def find_row(table: str) -> str:
    (line,) = (line for line in table.splitlines() if re.match(r"\W*docs\b", line))
    return line


def test_a_table_shows_its_change_and_no_word() -> None:
    findings = judge_with_texts()
    table = findings_table(findings)
    for kind in ("table", "markdown"):
        row = find_row(write_table(table, kind))
        assert "−25.0" in row
        assert not WORDS.search(row)
    assert BITS in find_row(write_table(table, "markdown"))
    (record,) = (record for record in table.records if record["role"] == "watched")
    assert (record["verdict"], record["change"]) == (None, -0.25)
    assert (record["bits_per_byte_base"], record["bits_per_byte_tuned"]) == (1.0, 2.0)
    assert "watched" in table.legend
    assert f"corrected for {len(make_usual())} benchmarks" in table.legend
    assert "watched" not in explain_table(judge_pairs(make_usual()))


def test_a_page_shows_its_bits_and_no_word() -> None:
    page = render_page(judge_with_texts(), "a run")
    rows = re.findall(r"<tr.*?</tr>", page, re.DOTALL)
    row = next(row for row in rows if "docs" in row)
    assert "badge" not in row
    assert BITS in page
    assert "right answer" not in page.partition(">docs")[2][:200]


def test_sentences_give_bits_and_claim_nothing() -> None:
    findings = judge_with_texts("calm")
    (sentence,) = (s for s in describe_findings(findings) if s.startswith("Bits per byte"))
    assert f"docs {BITS}" in sentence
    assert [s for s in describe_findings(findings) if "docs (−25.0 points)" in s]
    assert any(BITS in line for line in summarize_briefly(findings))


def test_a_figure_has_no_margin_and_no_word_for_it() -> None:
    (axes,) = draw_changes(judge_with_texts("maths", "calm")).axes
    assert (len(axes.patches), len(axes.texts)) == (2, 2)


def test_a_comparison_shows_it_last_and_counts_it_in_no_mean() -> None:
    runs = [
        make_run(
            judge_with_texts("skill", "calm"), i, seed=str(i % 2), lora__r="8" if i < 2 else "64"
        )
        for i in range(4)
    ]
    for group_seeds in (True, False):
        comparison = compare_runs(runs, group_seeds)
        _, shown = describe_briefly(comparison)
        assert "kept" not in [column.heading for column in shown.columns]
        rows = [row for row in shown.rows if not row.is_secondary]  # without those of the base
        assert rows
        assert all(str(row[shown.columns[-1]]) == "−25.0 ·" for row in rows)
        table = comparison_table(comparison)
        for record in table.records:
            assert record["docs.verdict_corrected"] == record["docs.verdict"] == ""
            assert record["docs.change"] == -0.25
        page = render_comparison_page(table, comparison, "lora.r")
        assert "−25.0" in page


def test_mlflow_gets_its_numbers_and_a_sign() -> None:
    findings = judge_with_texts("maths", "calm")
    assert describe_verdicts(findings).split()[-2:] == ["docs", "·"]
    assert describe_headline(findings).endswith("; docs -25.0")
    metrics = collect_finding_metrics(findings)
    wanted: dict[str, Any] = {"change/docs": -25.0, "bits_per_byte_base/docs": 1.0}
    assert metrics.items() >= (wanted | {"bits_per_byte_tuned/docs": 2.0}).items()
    usual = make_usual()
    without = judge_pairs({name: usual[name] for name in ("maths", "calm")})
    assert metrics["kept"] == collect_finding_metrics(without)["kept"]
    assert Role.watched not in findings.mean_changes
