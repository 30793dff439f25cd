"""One table in every format: what people read, what programs read, and that no name is obeyed."""

import csv
import json
import re
from dataclasses import replace
from html import unescape
from io import StringIO
from math import inf, nan

import pandas as pd
import pytest
from made_up import evaluation, stopped, written
from rich.console import Console

from slimdown.config.schema import PaperMetric, Role
from slimdown.report.findings import Pair, findings_table, pairs_table
from slimdown.report.table import FORMATS, Cell, Column, Row, Table, show, write
from slimdown.stats.findings import Findings, judge

HOSTILE = [
    "[/y] [bold",
    "=1+1",
    "-2 sigma",
    "a|b `c` <img src=x onerror=y>",
    "[x](javascript:y)",
    "q\"u'o&te",
    "x\x00\x1b",
]
TABLE = Table(
    title="two runs",
    columns=(
        Column("run", widest=44),
        Column("change", "points", is_number=True),
        Column("more", on_console=False),
    ),
    rows=(
        Row(
            (
                Cell("one", values={"name": "one", "n": 2}),
                Cell(
                    "−3.0",
                    "[−4.0, −2.0]",
                    "all of it",
                    "forgotten",
                    " → undecided †",
                    -0.03,
                    {"change": -0.03},
                ),
                Cell("hidden"),
            ),
            hint="seed 1",
        ),
        Row(
            (
                Cell("two", values={"name": "two"}),
                Cell("–", values={"change": nan, "high": inf}),
                Cell(),
            ),
            is_minor=True,
        ),
    ),
    legend="how to read",
    notes=("a note",),
)


def shown(table: Table, width: int) -> list[str]:
    out = StringIO()
    show(table, Console(file=out, width=width, force_terminal=True, color_system=None))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def found() -> Findings:
    kept, lost = (
        written([1.0] * 80, paper_metric=PaperMetric.forgetting_rate),
        written([0.0] * 40 + [1.0] * 40),
    )
    learned = written([1.0] * 30 + [0.0] * 10, role=Role.target)
    return judge(
        evaluation(maths=kept, skill=written([0.0] * 40, role=Role.target)),
        evaluation(maths=lost, skill=learned),
    )


def test_markdown_sets_numbers_right_and_a_cell_on_one_line() -> None:
    assert write(TABLE, "markdown").splitlines() == [
        "### two runs",
        "",
        "- a note",
        "",
        "| run | change | more |",
        "|---|---:|---|",
        "| one | −3.0 \\[−4.0, −2.0\\] forgotten → undecided † (all of it) | hidden |",
        "| two | – |  |",
        "",
        "how to read",
    ]


def test_programs_get_every_name_and_nothing_for_what_is_not_known() -> None:
    assert write(TABLE, "csv") == "name,n,change,high\none,2,-0.03,\ntwo,,,\n"
    assert json.loads(write(TABLE, "json"), parse_constant=pytest.fail) == TABLE.records
    assert TABLE.records[1] == {"name": "two", "n": None, "change": None, "high": None}


def test_html_has_a_heading_a_cell_an_order_and_a_hint() -> None:
    html = write(TABLE, "html")
    assert '<th scope="col" class="num">change<small>points</small></th>' in html
    assert (
        '<tr title="seed 1">\n<th scope="row">one</th>\n<td class="num" data-order="-0.03">−3.0 '
        in html
    )
    assert (
        '<span class="badge forgotten"><span aria-hidden="true">↓</span> forgotten</span>' in html
    )
    assert '<tr class="minor">' in html
    assert not re.search("src=|href=|@import|url\\(", html)


def test_a_console_shows_what_fits_beside_below_or_stacked() -> None:
    beside, below, stacked = (shown(TABLE, width) for width in (80, 30, 26))
    assert " one  −3.0 [−4.0, −2.0] forgotten → undecided †" in beside
    assert " one        −3.0 [−4.0, −2.0]" in below
    assert "   change  −3.0 [−4.0," in stacked
    for lines, width in ((beside, 80), (below, 30), (stacked, 26)):
        text = " ".join(" ".join(lines).split())
        assert max(map(len, lines)) <= width
        assert all(
            part in text for part in ("−3.0", "forgotten", "all of it", "a note", "how to read")
        )
        assert "hidden" not in text
        assert "…" not in text


def test_a_file_is_as_wide_as_the_table() -> None:
    wide = Table(
        "",
        tuple(Column(f"c{i}") for i in range(40)),
        (Row(tuple(Cell("12345678") for _ in range(40))),),
    )
    assert write(wide, "table").splitlines()[3].split() == ["12345678"] * 40


def test_rows_that_are_left_out_are_counted() -> None:
    assert "1 more rows; --rows 0 shows all of 3" in shown(replace(TABLE, n_left_out=1), 80)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_and_never_obeyed(name: str) -> None:
    columns = (Column(name), Column("x"))
    table = Table(
        name,
        columns,
        (Row((Cell(name, name, name, name, values={"name": name}), Cell()), hint=name),),
        name,
        (name,),
    )
    texts = {format: write(table, format) for format in FORMATS}
    assert name.split()[0] in texts["table"]
    [[_], [cell]] = csv.reader(StringIO(texts["csv"]))
    assert cell.removeprefix("'") == name
    assert cell[0] not in "=-"
    assert json.loads(texts["json"]) == [{"name": name}]
    assert not re.search(r"<img|(?<!\\)`|(?<!\\)\[x|(?<!\\)\|b", texts["markdown"])
    assert "<img" not in texts["html"]
    assert name.replace("\x00", "␀").replace("\x1b", "␛") in unescape(texts["html"])
    assert '"u' not in texts["html"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_without_rows_can_be_written(format: str) -> None:
    assert write(Table("nothing", (Column("a"),), ()), format)


def test_findings_are_a_row_a_metric_and_records_for_a_frame() -> None:
    table = findings_table(found(), "a run")
    frame = pd.DataFrame(table.records)
    assert list(frame.benchmark) == ["maths", "maths", "skill", "skill"]
    assert list(frame.metric) == ["match.flexible", "match.strict"] * 2
    assert list(frame.verdict.fillna("")) == ["forgotten", "", "improved", ""]
    assert list(frame.change) == [-0.5, 0, 0.75, 0]
    assert (frame.lost[0], frame.gained[0], frame.base[0], frame.tuned[0]) == (40, 0, 1, 0.5)
    assert frame.forgetting_rate[0] == 0.5
    assert frame.forgetting_rate[2:].isna().all()  # of a target task there is none
    assert (frame.main_cause[0], frame.main_cause_share[0]) == ("stopped_early", 1)
    assert json.loads(write(table, "json"))["mean_retained_change"]["value"] == -0.5
    assert (
        "| maths | flexible | 80 | 100.0 ±0.0 | 50.0 ±5.6 | −50.0 \\[−60.1, −37.4\\] | &lt; 0.001 | forgotten "
        in write(table, "markdown")
    )


def test_how_many_were_asked_of_how_many_stands_in_every_format() -> None:
    early = [
        evaluation(maths=stopped(written([score] * 1319), 45), few=written([1.0] * 9))
        for score in (1.0, 0.0)
    ]
    table = findings_table(judge(*early), "a run")
    assert "| maths | flexible | 45 of 1,319 | 100.0 | 0.0 | −100.0 " in write(table, "markdown")
    assert "| few | flexible | 9 | 100.0 ±" in write(table, "markdown")
    assert re.search(r"maths +flexible +45 of 1,319 ", write(table, "table"))
    first = next(csv.DictReader(StringIO(write(table, "csv"))))
    assert (first["n"], first["n_available"], first["change_stderr"]) == ("45", "1319", "")
    assert json.loads(write(table, "json"))["summary"][0].startswith(
        "Forgotten: maths (−100.0 points after 45 of 1,319 questions)"
    )
    for format in ("markdown", "table", "html"):
        assert "Questions were asked until enough was known, or all were." in " ".join(
            write(table, format).split()
        )
        assert "Questions were asked until" not in write(findings_table(found()), format)


@pytest.mark.parametrize(
    ("n_confirmed", "title", "sides", "document"),
    [(0, "a → b", ("first", "second"), dict), (1, "a → b", ("base", "tuned"), list)],
)
def test_a_pair_is_a_row_a_benchmark(
    n_confirmed: int, title: str, sides: tuple[str, str], document: type
) -> None:
    table = pairs_table([Pair("a", "b", found(), n_confirmed)])
    assert table.title == title
    assert tuple(column.heading for column in table.columns[3:5]) == sides
    assert [(r["pair"], r["benchmark"], r[sides[1]]) for r in table.records] == [
        (title, "maths", 0.5),
        (title, "skill", 0.75),
    ]
    assert list(table.records[0])[:5] == ["pair", "benchmark", "role", "metric", "n"]
    assert isinstance(json.loads(write(table, "json")), document)


def test_several_pairs_are_told_apart() -> None:
    table = pairs_table([Pair("base", name, found(), 2) for name in "ab"])
    assert [str(row.cells[0]) for row in table.rows] == ["base → a"] * 2 + ["base → b"] * 2
    assert len(json.loads(write(table, "json"))) == 2
    assert "each checkpoint" in table.legend
