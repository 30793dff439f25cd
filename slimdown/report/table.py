"""One table, one writer a format: what is shown on a console and on a page, and what programs read as CSV and JSON.

    table = findings_table(findings)        # findings.py; comparison.py has those of many runs
    write(table, "markdown")                # or "table", "csv", "json", "html"
    show(table, Console())                  # as wide as the console allows
    pandas.DataFrame(table.records)         # a record a row, numbers whole

A cell holds what people read and, under the names of the record, what programs do. In CSV and JSON numbers are shares
at full precision; what is not known is empty or null, never NaN.
"""

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from math import isfinite
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from slimdown.report.numbers import NOTHING
from slimdown.report.words import LOOKS, kind_of

FORMATS = ("table", "markdown", "csv", "json", "html")
PLAIN_WIDTH = 120  # of a file or a pipe, or more where a table needs it
_UNBOUNDED = 10_000  # columns: as wide as a table likes


@dataclass(frozen=True)
class Column:
    """What stands above a column, and how it is set."""

    heading: str
    unit: str = ""  # below the heading on a page
    is_number: bool = False  # set to the right
    widest: int | None = None  # characters on a console, where the text is one that may be broken
    on_console: bool = True
    is_choice: bool = (
        False  # a page offers what stands below as choices, to see only rows with one of them
    )


@dataclass(frozen=True)
class Cell:
    """What stands in one place: for people in parts, each with a look of its own; for programs by name."""

    text: str = ""
    doubt: str = ""  # how sure the text is: an interval, a standard error
    note: str = ""
    verdict: str = ""
    correction: str = ""  # what is left of the verdict
    order: float | str | None = None  # what it is sorted by; None: last
    values: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """All of it on one line."""
        note = f"({self.note})" if self.note else ""
        return " ".join(filter(None, (self.text, self.doubt, self.verdict + self.correction, note)))


@dataclass(frozen=True)
class Row:
    """Cells, one a column."""

    cells: tuple[Cell, ...]
    is_minor: bool = False  # belongs to the row above
    hint: str = ""  # what a page shows when it is pointed at


@dataclass(frozen=True)
class Table:
    """What is written: a title, notes, rows below columns, and how they are read."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    legend: str = ""
    notes: tuple[str, ...] = ()
    n_left_out: int = 0  # rows that a console is spared
    document: Callable[[], Any] | None = None  # what JSON holds; None: the records

    @property
    def records(self) -> list[dict[str, Any]]:
        """A record a row: what programs read, by name. Every record has every name."""
        found = [
            {key: value for cell in row.cells for key, value in cell.values.items()}
            for row in self.rows
        ]
        names = dict.fromkeys(name for record in found for name in record)
        return [{name: _known(record.get(name)) for name in names} for record in found]


def write(table: Table, format: str) -> str:
    """The table as text in one of `FORMATS`; HTML is a fragment that brings its style along and loads nothing."""
    if format == "table":
        # Whatever rich makes of its surroundings: in a notebook it would print there, elsewhere in colours.
        plain: dict[str, Any] = {
            "force_jupyter": False,
            "force_terminal": False,
            "color_system": None,
        }
        show(table, Console(file=(text := StringIO()), highlight=False, width=PLAIN_WIDTH, **plain))
        return text.getvalue()
    return {"markdown": _markdown, "csv": _csv, "json": _json, "html": _html}[format](table)


# --- for people ---------------------------------------------------------------------------------------


def show(table: Table, console: Console) -> None:
    """Print the table, as wide as the console allows."""
    if table.title:
        console.print(
            Text(table.title), style="bold", soft_wrap=True
        )  # an address stays in one piece
    for note in table.notes:
        console.print(Text(note), style="yellow")
    console.print(_fitting(table, console))
    if n := table.n_left_out:
        console.print(f"{n:,} more rows; --rows 0 shows all of {n + len(table.rows):,}")
    if table.legend:
        console.print(Text(table.legend), style="dim")


def _fitting(table: Table, console: Console) -> RichTable:
    free = console.options.update(width=_UNBOUNDED)
    for before_verdict in (" ", "\n"):
        shown = _side_by_side(table, before_verdict)
        width = Measurement.get(console, free, shown).maximum
        if not console.is_terminal:  # a file or a pipe is as wide as it has to be
            console.width = max(console.width, width)
        if width <= console.width:
            return shown
    return _stacked(table)


def _rich_table() -> RichTable:
    return RichTable(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)


def _side_by_side(table: Table, before_verdict: str) -> RichTable:
    shown = _rich_table()
    kept = [i for i, column in enumerate(table.columns) if column.on_console]
    for column in (table.columns[i] for i in kept):
        shown.add_column(
            Text(column.heading),
            justify="right" if column.is_number else "left",
            no_wrap=column.widest is None,
            max_width=column.widest,
            overflow="fold",
        )
    for row in table.rows:
        cells = [_styled(row.cells[i], before_verdict) for i in kept]
        shown.add_row(*cells, style="dim" if row.is_minor else "")
    return shown


def _stacked(table: Table) -> RichTable:
    """A line a cell below each row's first: for a narrow terminal."""
    shown = _rich_table()
    shown.add_column(Text(table.columns[0].heading), overflow="fold")
    shown.add_column("", overflow="fold")
    for row in table.rows:
        shown.add_row(Text(str(row.cells[0]), "dim" if row.is_minor else "bold"))
        for column, cell in zip(table.columns[1:], row.cells[1:], strict=True):
            if column.on_console and str(cell) not in ("", NOTHING):
                shown.add_row(Text(f"  {column.heading}", "dim"), _styled(cell, "\n"))
        shown.add_section()
    return shown


def _styled(cell: Cell, before_verdict: str) -> Text:
    text = Text(f"{cell.text} {cell.doubt}".rstrip())
    if cell.verdict:
        text.append(before_verdict if text else "")
        text.append(cell.verdict, LOOKS[kind_of(cell.verdict)].console)
        text.append(cell.correction, "yellow")
    if cell.note:
        text.append(f"\n{cell.note}" if text else cell.note, "dim")
    return text


def _markdown(table: Table) -> str:
    lines = [f"### {in_markdown(table.title)}", ""] if table.title else []
    lines += [*(f"- {in_markdown(note)}" for note in table.notes), ""] if table.notes else []
    lines += [_line([column.heading for column in table.columns])]
    lines += ["|" + "".join("---:|" if column.is_number else "---|" for column in table.columns)]
    lines += [_line([str(cell) for cell in row.cells]) for row in table.rows]
    return "\n".join([*lines, "", *([in_markdown(table.legend), ""] if table.legend else [])])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(in_markdown, cells)) + " |"


def in_markdown(text: str) -> str:
    r"""The text as it reads, in a cell of a table too: names may hold what Markdown or HTML takes for its own.

    >>> print(in_markdown("a|b <b> `c` [d](e)"))
    a\|b &lt;b> \`c\` \[d\](e)
    """
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(
        r"([\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", plain
    )  # within a word _ is a letter


def _html(table: Table) -> str:
    from slimdown.report.pages import render  # jinja2 is not for who asks for a line on the console

    return render("fragment.html.j2", table=table)


# --- for programs -------------------------------------------------------------------------------------


def _csv(table: Table) -> str:
    out = StringIO()
    writer = csv.DictWriter(out, list(table.records[0]) if table.rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: _harmless(value) for key, value in record.items()} for record in table.records
    )
    return out.getvalue()


def _harmless(value: Any) -> Any:
    """The value with an apostrophe before what a spreadsheet would compute; numbers stay numbers.

    >>> _harmless("=1+1"), _harmless("-3.2"), _harmless(-3.2), _harmless("-r 8"), _harmless("a=1")
    ("'=1+1", '-3.2', -3.2, "'-r 8", 'a=1')
    """
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return (
        f"'{value}"
        if is_formula and not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value)
        else value
    )


def _json(table: Table) -> str:
    content = _known(table.document() if table.document else table.records)
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _known(content: Any) -> Any:
    """The same with None for what is no number: JSON has no word for it."""
    if isinstance(content, Mapping):
        return {key: _known(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_known(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content
