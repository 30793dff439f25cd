"""One table type and one writer for each format: for people and for programs.

    table = findings_table(findings)
    write_table(table, "markdown")          # or "table", "csv", "json", "html"
    pandas.DataFrame(table.records)         # one record for each row, unrounded

A cell holds the text that people read and, under the names of the record, the values that programs
read. In CSV and JSON numbers are shares of 1 at full precision; unknown values are empty or null.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from io import StringIO
from itertools import chain
from math import isfinite
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from slimdown.report.formatting import (
    EMPTY,
    SHORTEST_NAME,
    cut_name,
    escape_markdown,
    format_value,
    pluralize,
    visible,
)
from slimdown.report.verdict_styles import find_style

# Two characters each: what stands before a cell's interval, and what before its verdict. A cell has
# one line, a second line for its verdict, or a line for each of its parts.
_ONE_LINE = "  "
_SEPARATORS = (_ONE_LINE, " \n", "\n\n")
_LONG_TEXT = 40  # characters; columns with longer texts break them
PLAIN_WIDTH = 80  # characters in a line of a file or a pipe; more where a table needs it


class Place(StrEnum):
    """Where a column can stand."""

    console = "console"  # without --all
    page = "page"
    markdown = "markdown"
    json = "json"  # and CSV
    mlflow = "mlflow"


EVERYWHERE = frozenset(Place)
NOT_BRIEF = EVERYWHERE - {Place.console}


@dataclass(frozen=True)
class Column:
    """A heading and how the cells below it are set."""

    heading: str
    unit: str = ""  # below the heading on a page
    is_number: bool = False  # aligned to the right
    max_width: int | None = None  # characters on a console
    is_name: bool = False  # is cut in its middle where a console is narrow
    is_filter: bool = False  # a page offers the values as a filter
    leave_out_rank: int = 0  # where a console is narrow, the highest goes first; 0 always stays
    places: frozenset[Place] = EVERYWHERE

    @property
    def is_extra(self) -> bool:
        """Whether a console without --all, and a phone, leave it out."""
        return Place.console not in self.places


@dataclass(frozen=True)
class Cell:
    """One cell: its parts for people, its values by name for programs."""

    text: str = ""
    interval: str = ""  # in brackets
    detail: str = ""  # a few more words, in a line of their own
    verdict: str = ""
    correction: str = ""  # behind the verdict: what is left of it in a table of many runs
    sort_key: float | str | None = None  # None: last
    values: Mapping[str, Any] = field(default_factory=dict)
    sign: str = ""  # a verdict of which only the sign is shown

    def __str__(self) -> str:
        """All parts on one line."""
        detail = f"({self.detail})" if self.detail else ""
        sign = find_style(self.sign).sign if self.sign else ""
        parts = (self.text, self.interval, self.verdict + self.correction, sign, detail)
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class Row:
    """Cells by column, in the order of the columns."""

    cells: dict[Column, Cell]
    is_secondary: bool = False  # a detail, such as a further metric; a console leaves it out

    def __getitem__(self, column: Column) -> Cell:
        """Return the cell of a column, an empty one where the row has none."""
        return self.cells.get(column, Cell())


@dataclass(frozen=True)
class Table:
    """A title, rows, and below them notes and a legend; above all the outcome, if there is one."""

    title: str
    rows: Sequence[Row]
    legend: str = ""  # how to read it
    notes: tuple[str, ...] = ()  # sentences
    outcome: str = ""  # a line that comes first, such as whether a gate has passed
    facts: Mapping[str, Any] = field(default_factory=dict)  # the outcome for programs, by name

    @cached_property
    def columns(self) -> list[Column]:
        """The columns in which any row has something to read, in their order."""
        columns = dict.fromkeys(column for row in self.rows for column in row.cells)  # each once
        return [column for column in columns if any(str(row[column]) for row in self.rows)]

    @property
    def brief(self) -> "Table":
        """The table without secondary rows, and with the columns of a console alone."""
        rows = [row for row in self.rows if not row.is_secondary]
        return replace(self, rows=rows).at(Place.console)

    def at(self, place: Place) -> "Table":
        """The table with the columns of one place."""
        return self.leave_out(lambda column: place not in column.places)

    def leave_out(self, is_left_out: Callable[[Column], bool]) -> "Table":
        """The table without some of its columns."""
        shown = [column for column in self.columns if not is_left_out(column)]
        rows = [replace(row, cells={column: row[column] for column in shown}) for row in self.rows]
        return replace(self, rows=rows)

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record for each row; every record has every name, in the same order.

        A value that a row lacks, or that is no finite number, is None.
        """
        empty_record: dict[str, None] = {}  # every name, in order
        records = []
        for row in self.rows:
            values: dict[str, Any] = {}
            for column, cell in row.cells.items():
                if Place.json not in column.places:
                    continue
                for name, value in cell.values.items():
                    empty_record[name] = None
                    if not isinstance(value, float) or isfinite(value):  # JSON has no nan
                        values[name] = value
            records.append(values)
        return [empty_record | values for values in records]


def make_table(
    title: str,
    records: Sequence[Mapping[str, Any]],
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    legend: str = "",
) -> Table:
    """Make a table of plain records, with a column for each name of the first record.

    Numbers are aligned to the right, and columns with long texts break them.

    Args:
        title: What stands above it.
        records: One for each row, all with the same names. None and nan are unknown: their cells
            show a dash. A value may be a `Cell`, which is shown as it is.
        formats: By name, the function that formats a known value; others have `format_value`.
        legend: What stands below it.
    """

    def make_cell(name: str, value: Any) -> Cell:
        if isinstance(value, Cell):
            return value
        is_unknown = value is None or value != value  # nan equals nothing, not even itself
        format_known = (formats or {}).get(name, format_value)
        shown = EMPTY if is_unknown else format_known(value)
        return Cell(shown, sort_key=value, values={name: value})

    rows: list[dict[Column, Cell]] = [{} for _ in records]
    for name in records[0] if records else ():
        cells = [make_cell(name, record[name]) for record in records]
        is_number = any(isinstance(cell.sort_key, int | float) for cell in cells)
        is_long = any(len(f"{cell.text}{cell.detail}") > _LONG_TEXT for cell in cells)
        heading = name.replace("_", " ")
        column = Column(heading, is_number=is_number, max_width=_LONG_TEXT if is_long else None)
        for row, cell in zip(rows, cells, strict=True):
            row[column] = cell
    return Table(title, list(map(Row, rows)), legend)


def runs_table(records: Sequence[Mapping[str, Any]], legend: str = "") -> Table:
    """Show one run or job in each row, with the beginning of its id.

    Args:
        records: One for each row, as for `make_table`; each has a `run_id`.
        legend: What stands below the table.
    """
    return make_table("", records, {"run_id": lambda run_id: run_id[:8]}, legend)


def sweep_table(jobs: Sequence[Mapping[str, Any]], notes: str = "") -> Table:
    """Show what became of each job of a sweep.

    Args:
        jobs: One record for each job, as for `make_table`; each has a `run_id` and a `state`, such
            as "finished".
        notes: Sentences that follow the numbers of jobs below the table.
    """
    counts = Counter(job["state"] for job in jobs)
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    return runs_table(jobs, f"{pluralize(len(jobs), 'job')}: {states}. {notes}".strip())


def write_table(table: Table, format: str) -> str:
    """Write a table in one of `formatting.FORMATS`.

    Args:
        table: The table.
        format: "table" is plain text, with the columns and rows of a console. "html" is a fragment
            with its own style that loads nothing. "json" and "csv" hold the table's records.

    Returns:
        The text, which ends with a line feed.
    """
    out = StringIO()
    if format == "table":
        # Always plain text: rich would print into a notebook, or write colors elsewhere.
        plain: dict[str, Any] = {"force_jupyter": False, "force_terminal": False}
        console = Console(file=out, width=PLAIN_WIDTH, color_system=None, highlight=False, **plain)
        print_table(table.brief, console)
        return out.getvalue()
    if format == "html":
        from slimdown.report.pages import render  # jinja2 takes a fifth of a second

        return render("fragment.html.j2", table=table.at(Place.page))
    if format == "markdown":
        return _write_markdown(table.at(Place.markdown))
    if format == "json":
        content = {**table.facts, "title": table.title, "notes": table.notes, "rows": table.records}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Only "csv" is left.
    writer = csv.DictWriter(out, list(table.records[0]) if table.rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.records)
    return out.getvalue()


def print_table(table: Table, console: Console, fits: bool = False) -> None:
    """Print a table, and below it its notes and its legend.

    If the console is too narrow, cells get several lines, then names are cut, then columns are left
    out. If even that is not enough, each cell gets a line of its own.

    Args:
        table: The table.
        console: Where it is printed. If it is a pipe or a file, it is made as wide as the table
            needs.
        fits: True keeps the width of a pipe or a file, too, so that the table has to fit it.
    """
    for heading in filter(None, (table.outcome, table.title)):
        # Programs read pipes and files line by line, so these keep the heading on one line.
        console.print(Text(visible(heading)), style="bold", soft_wrap=not console.is_terminal)
    if not (console.is_terminal or fits):
        measured = _measure(_lay_out(table, _ONE_LINE), console)
        console.width = max(console.width, measured.maximum)
    rich_table, left_out = _fit(table, console)
    if rich_table:
        console.print("", rich_table, "", sep="\n")
    else:  # no layout fits: each cell gets a line
        for row in table.rows:
            for column in table.columns:
                text = _style_cell(row[column], _ONE_LINE)
                if text and text.plain != EMPTY:
                    console.print(Text(f"{visible(column.heading)}: ").append(text))
            console.print()
    if left_out:
        names = ", ".join(visible(column.heading) for column in left_out)
        reason = f"Columns left out, because a line has {console.width} characters: {names}."
        console.print(Text(f"{reason} Add -o FILE.html or -o FILE.csv to see everything."))
    for line in table.notes:
        console.print(Text(visible(line)))
    if table.legend:
        console.print(Text(visible(table.legend)), style="dim")


def _fit(table: Table, console: Console) -> tuple[RichTable | None, list[Column]]:
    """Lay out a table so that it fits the console: in higher cells, with cut names, or both.

    While it does not fit, the column with the highest `leave_out_rank` is left out.

    Returns:
        The table and the columns that were left out; None and no columns if it cannot fit.
    """
    left_out = list[Column]()
    while True:
        for separators in _SEPARATORS:  # each makes the table narrower, and its rows higher
            rich_table = _lay_out(table, separators)
            n_too_many = _measure(rich_table, console).minimum - console.width
            if n_too_many > 0:
                rich_table = _lay_out(_cut_names(table, n_too_many), separators)
            if _measure(rich_table, console).minimum <= console.width:
                return rich_table, left_out
        ranked = [column for column in table.columns if column.leave_out_rank]
        if not ranked:
            return None, []
        dropped = max(ranked, key=lambda column: column.leave_out_rank)
        left_out.append(dropped)
        table = table.leave_out(lambda column: column in left_out)


def _measure(rich_table: RichTable, console: Console) -> Measurement:
    """Measure how wide a table is at least (`minimum`), and if no text breaks (`maximum`)."""
    wide = console.options.update(width=10_000)  # rich cuts both numbers to this width
    return Measurement.get(console, wide, rich_table)


def _cut_names(table: Table, surplus: int) -> Table:
    """Cut the names of each column of names, so that it is narrower by `surplus` characters.

    But no column becomes narrower than `SHORTEST_NAME` characters.
    """
    room: dict[Column, int] = {}  # characters that a column of names has
    for column in table.columns:
        if column.is_name:
            texts = [column.heading, *(str(row[column]) for row in table.rows)]
            longest = max(map(cell_len, texts))
            room[column] = max(SHORTEST_NAME, longest - surplus)
    rows = []
    for row in table.rows:
        cells = {}
        for column, cell in row.cells.items():
            if column in room:
                cut_column = replace(column, heading=cut_name(column.heading, room[column]))
                cells[cut_column] = replace(cell, text=cut_name(cell.text, room[column]))
            else:
                cells[column] = cell
        rows.append(replace(row, cells=cells))
    return replace(table, rows=rows)


def _lay_out(table: Table, separators: str) -> RichTable:
    """Lay out a table for the console.

    A column with a `max_width` may break its text between words. Other columns, such as those of
    names, numbers and verdicts, never break theirs.

    Args:
        table: The table.
        separators: What joins the parts of a cell, one of `_SEPARATORS`.

    Returns:
        The table as rich prints it. No column may become narrower than what never breaks in it.
    """
    rich_table = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    columns = table.columns
    texts = [[_style_cell(row[column], separators) for column in columns] for row in table.rows]
    for i, column in enumerate(columns):
        heading = Text(visible(column.heading))
        contents = [heading.plain, *(texts_of_row[i].plain for texts_of_row in texts)]
        may_break = column.max_width is not None
        # What never breaks: a word where the text may break, and otherwise a whole line.
        parts = [content.split() if may_break else content.splitlines() for content in contents]
        longest = max(map(cell_len, chain.from_iterable(parts)), default=0)
        rich_table.add_column(
            heading,
            justify="right" if column.is_number else "left",
            min_width=longest,
            # A single word may be longer than the column should be wide.
            max_width=None if column.max_width is None else max(column.max_width, longest),
            no_wrap=not may_break,
        )
    for row, texts_of_row in zip(table.rows, texts, strict=True):
        rich_table.add_row(*texts_of_row, style="dim" if row.is_secondary else "")
    return rich_table


def _style_cell(cell: Cell, separators: str) -> Text:
    """Join the parts of a cell as colored text, all of them made visible.

    Args:
        cell: The cell.
        separators: Two characters: before the interval, and before the verdict.
    """
    interval_separator, verdict_separator = separators[0], separators[1]
    parts = (visible(cell.text), visible(cell.interval))
    text = Text(interval_separator.join(filter(None, parts)))
    if cell.verdict:
        style = find_style(cell.verdict)
        text.append(verdict_separator if text else "")
        text.append(f"{style.sign} {visible(cell.verdict)}", style.console_style)
        text.append(cell.correction, "yellow")
    if cell.sign:
        style = find_style(cell.sign)
        text.append(f" {style.sign}", style.console_style)
    if cell.detail:
        text.append(f"\n{visible(cell.detail)}" if text else visible(cell.detail), "dim")
    return text


def _write_markdown(table: Table) -> str:
    """Write outcome, title, rows, notes and legend as Markdown, so far as there are any."""

    def write_line(cells: list[str]) -> str:
        return "| " + " | ".join(map(escape_markdown, cells)) + " |"

    lines = [f"**{escape_markdown(table.outcome)}**", ""] if table.outcome else []
    lines += [f"### {escape_markdown(table.title)}", ""] if table.title else []
    lines.append(write_line([column.heading for column in table.columns]))
    lines.append("|" + "".join("---:|" if c.is_number else "---|" for c in table.columns))
    lines += [write_line([str(row[column]) for column in table.columns]) for row in table.rows]
    lines += ["", *(f"- {escape_markdown(line)}" for line in table.notes)] if table.notes else []
    lines += ["", escape_markdown(table.legend)] if table.legend else []
    return "\n".join([*lines, ""])
