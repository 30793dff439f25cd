"""One table in every format: what people read, what programs read, and names that do no harm."""

import csv
import json
import re
from dataclasses import replace
from html import unescape
from io import StringIO
from math import inf, nan

import pytest
from builders import make_run, make_scores
from report_builders import Findings, judge_pairs, make_usual, written
from rich.console import Console

from slimdown.comparison.run_comparison import compare_runs
from slimdown.judging.budgets import Gate, check_budgets
from slimdown.report.comparison_page import comparison_table
from slimdown.report.figures import draw_changes
from slimdown.report.findings_report import evaluation_table, findings_table
from slimdown.report.formatting import FORMATS
from slimdown.report.tables import Cell, Column, Row, Table, print_table, write_table

HOSTILE = ["[/y] [bold", "=1+1", "-2 sigma", "a|b `c` <img src=x onerror=y>", "[x](javascript:y)"]
HOSTILE += ["q\"u'o&te", "x\x00\x1b[2J\r\n\x9b\u202ey"]
PARTS = ("−3.0", "[−4.0, −2.0]", "after 9", "forgotten", " → undecided †")
FALLEN = Cell(*PARTS, -0.03, {"change": -0.03})
RUN, CHANGE = Column("run", max_width=44), Column("change", "points", is_number=True)
UNKNOWN = Cell("–", values={"change": nan, "high": inf})
TABLE = Table(
    title="two runs",
    rows=(
        Row({RUN: Cell("one", values={"name": "one", "n": 2}), CHANGE: FALLEN}),
        Row({RUN: Cell("two", values={"name": "two"}), CHANGE: UNKNOWN}),
    ),
    legend="how to read",
    notes=("a remark",),
)


def print_lines(table: Table, width: int, is_terminal: bool = True) -> list[str]:
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=is_terminal, color_system=None)
    print_table(table, console)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.fixture(scope="module")
def findings() -> Findings:
    return judge_pairs(make_usual())


def test_markdown_keeps_a_cell_on_one_line() -> None:
    change = r"−3.0 \[−4.0, −2.0\] forgotten → undecided † (after 9)"
    lines = write_table(TABLE, "markdown").splitlines()
    assert lines[4:6] == [f"| one | {change} |", "| two | – |"]


def test_programs_get_every_name_and_nothing_for_unknown_values() -> None:
    assert write_table(TABLE, "csv") == "name,n,change,high\none,2,-0.03,\ntwo,,,\n"
    content = json.loads(write_table(TABLE, "json"), parse_constant=pytest.fail)
    assert content == {"title": "two runs", "notes": ["a remark"], "rows": TABLE.records}
    assert TABLE.records[1] == {"name": "two", "n": None, "change": None, "high": None}


def test_html_has_a_sort_key_and_a_sign_beside_the_color() -> None:
    html = write_table(TABLE, "html")
    assert 'data-order="-0.03"' in html
    [badge] = re.findall('<span class="badge forgotten">(.*)</span>', html)
    assert re.sub("<.*?>", "", badge) == "↓ forgotten"
    assert not re.search("src=|href=|@import|url\\(", html)


@pytest.mark.parametrize("width", [80, 40, 22])
def test_a_terminal_of_any_width_shows_everything(width: int) -> None:
    lines = print_lines(TABLE, width)
    content = " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= width
    for part in ("−3.0", "forgotten", "after 9", "a remark", "how to read"):
        assert part in content
    assert "…" not in content


@pytest.mark.parametrize("width", [200, 60])
def test_names_and_verdicts_are_never_broken_inside(width: int) -> None:
    name = Cell("dataset.alpaca.validation_examples=50 seed=0")
    table = Table("", [Row({RUN: name, Column("gsm8k"): FALLEN, Column("mmlu"): FALLEN})])
    for lines in (print_lines(table, width), write_table(table, "table").splitlines()):
        text = "\n".join(lines)
        assert "dataset.alpaca.validation_examples=50" in text
        assert text.count(f"{PARTS[1]} ↓ {PARTS[3]}{PARTS[4]}") == 2


def test_rows_below_each_other_keep_their_settings() -> None:
    """A run's name is cut, and may not hold what tells two runs apart."""
    cells = {RUN: Cell("any model.id=a …"), Column("keep.name", leave_out_rank=1): Cell("replay")}
    table = Table("", [Row(cells | {Column("gsm8k"): FALLEN})])
    assert "keep.name: replay" in print_lines(table, 18)


def test_a_narrow_console_leaves_out_columns_by_rank_and_names_them() -> None:
    columns = [Column(f"benchmark{i}", is_number=True, leave_out_rank=i) for i in range(6)]
    table = Table("", [Row({RUN: Cell("r1")} | {column: Cell("−12.3") for column in columns})])
    whole, narrow = ("\n".join(print_lines(table, width)) for width in (100, 50))
    assert all(column.heading in whole for column in columns)
    shown, _, left_out = narrow.partition("Columns left out")
    assert "benchmark0" in shown
    dropped = [column.heading for column in columns if column.heading not in shown]
    assert dropped
    assert all(name in left_out for name in dropped)
    assert dropped == [column.heading for column in columns][-len(dropped) :]


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("is_gate", [True, False])
def test_findings_fit_a_terminal_whatever_the_names(is_terminal: bool, is_gate: bool) -> None:
    """A name is cut in its middle, no number and no verdict; pipes and files keep it whole."""
    name = "mmlu_college_computer_science_of_the_second_half"
    findings = judge_pairs({name: make_usual()["maths"], **make_usual()})
    gate = Gate(tuple(check_budgets(findings, {}))) if is_gate else None
    table = findings_table(findings, gate=gate)
    lines = print_lines(replace(table.brief, outcome=""), 80, is_terminal)
    assert (max(map(len, lines)) <= 80) is is_terminal
    budget = " +2 ✗" if is_gate else ""
    for shown in ("maths", r"mmlu_co[a-z_]*…[a-z_]*_half" if is_terminal else name):
        row = re.compile(rf" *{shown} +80 +100\.0 +50\.0 +−50\.0 \[.*\] +↓ forgotten{budget}")
        assert any(map(row.fullmatch, lines)), lines
    for format in FORMATS:
        assert name in write_table(table, format).replace("<wbr>", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_and_never_obeyed(name: str) -> None:
    cell = Cell(name, name, name, name, values={"name": name})
    table = Table(name, [Row({Column(name): cell, Column("x"): Cell()})], name, (name,))
    texts = {format: write_table(table, format) for format in FORMATS}
    for format in ("table", "markdown", "html"):
        assert not re.search("[\x00\x1b\r\x9b\u202e]", texts[format])
    assert name.split()[0][:1] in texts["table"]
    [[_], [cell]] = csv.reader(StringIO(texts["csv"], newline=""))
    assert cell == name
    assert json.loads(texts["json"])["rows"] == [{"name": name}]
    assert not re.search(r"<img|(?<!\\)`|(?<!\\)\[x|(?<!\\)\|b", texts["markdown"])
    assert "<img" not in texts["html"]
    assert name[:3] in unescape(texts["html"]) or "␀" in texts["html"]


def test_findings_are_records_of_shares(findings: Findings) -> None:
    records = findings_table(findings, "a run").records
    by_metric = {(r["benchmark"], r["metric"]): r for r in records}
    maths, strict = by_metric["maths", "match.flexible"], by_metric["maths", "match.strict"]
    assert (maths["base"], maths["tuned"], maths["change"], maths["lost"]) == (1, 0.5, -0.5, 40)
    assert (maths["verdict"], strict["verdict"]) == ("forgotten", None)
    assert maths["forgetting_rate"] == 0.5
    assert by_metric["skill", "match.flexible"]["forgetting_rate"] is None  # target tasks have none
    assert all(
        -1 <= r[key] <= 1 for r in records for key in ("change_low", "change", "change_high")
    )


def test_one_models_scores_have_their_errors(findings: Findings) -> None:
    records = evaluation_table(findings.base).records
    assert list(records[0].values()) == ["maths", "match.flexible", 0, 80, 1.0, 0.0]
    shown = write_table(evaluation_table(findings.base), "table")
    rows = [line.split() for line in shown.splitlines()]
    assert ["maths", "match.flexible", "0", "80", "100.0", "0.0"] in rows


def test_the_shown_interval_agrees_with_the_verdict_everywhere() -> None:
    """20 of 1,000 lost and 12 gained: the 95 % interval reaches 2 points, that of 90 % does not."""
    before, after = make_scores(568, 20, 12, 400)
    findings = judge_pairs({"calm": (written(before), written(after))})
    benchmark = findings.benchmarks["calm"]
    assert benchmark.verdict == "retained"
    assert benchmark.primary.difference.low < -0.02 < benchmark.shown_change.low
    table = findings_table(findings)
    assert "90 %" in table.legend
    assert "= 90 %" in write_table(table, "table")
    [row] = (row for row in table.rows if not row.is_secondary)
    [compared] = comparison_table(compare_runs([make_run(findings)])).rows
    own_cell = list(row.cells.values())[5]
    compared_cell = next(cell for cell in compared.cells.values() if cell.interval)
    intervals = [list(draw_changes(findings).axes[0].lines[0].get_xdata())]
    for cell in (own_cell, compared_cell):
        ends = re.findall(r"[−+][\d.]+", cell.interval)
        intervals.append([float(end.replace("−", "-")) for end in ends])
    for low, high in intervals:
        assert -2 < low < high < 2
    assert own_cell.values["change_low"] == benchmark.primary.difference.low  # as documented
