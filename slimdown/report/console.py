"""Print the plan, the progress, the findings, and where they are saved.

In a terminal progress is a bar. In a log it is a plain line every 30 seconds.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from slimdown.config.schema import OnProgress, RunConfig
from slimdown.report import text
from slimdown.report.findings_report import budgets_table, findings_table
from slimdown.report.formatting import encodable, format_duration, visible
from slimdown.report.tables import PLAIN_WIDTH, Table, print_table
from slimdown.stats.budgets import BudgetCheck, overall_outcome
from slimdown.utils.secrets import redact

LOG_SECONDS = 30.0  # between two lines of a log


class _StandardOutput:
    """sys.stdout without characters that it cannot encode; nothing where it is closed."""

    def __init__(self) -> None:
        self._stream = sys.stdout  # rich replaces it while it shows a bar
        self.encoding = getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, content: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(encodable(content, self.encoding))
                self._stream.flush()
            except BrokenPipeError:  # `| head` has read enough; rich would exit with code 1
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return len(content)

    def flush(self) -> None:
        """Does nothing: `write` flushes."""

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()


def _open_console() -> Console:
    stream = cast(IO[str], _StandardOutput())
    width = None if stream.isatty() else PLAIN_WIDTH
    return Console(file=stream, highlight=False, width=width, force_jupyter=False)


def show_line(line: str, style: str = "") -> None:
    """Print one line as it is, without markup and control characters."""
    _open_console().print(Text(visible(line), style), soft_wrap=True)


def show_notes(lines: Sequence[str]) -> None:
    """Print what you should know before you wait, one line each."""
    for line in lines:
        show_line(line, "yellow")


def show_table(table: Table, with_details: bool = False) -> None:
    """Print a table as wide as the terminal allows; details are extra columns and rows."""
    print_table(table, _open_console(), with_details)


def print_text(content: str) -> None:
    """Print a text that is written already, such as CSV; to a terminal without control characters.

    Raises:
        OSError: The text cannot be written, for example since the disk is full.
    """
    stream = _StandardOutput()
    stream.write(visible(content, multiline=True) if stream.isatty() else content)


def show_plan(config: RunConfig, name: str) -> None:
    """Print what a run is about to do."""
    for heading, content in ({"run": name} | text.describe_run(config)).items():
        line = Text.assemble((f"{heading:<12}", "bold"), visible(redact(content)))
        _open_console().print(line, soft_wrap=True)


@contextmanager
def progress_bar(label: str) -> Iterator[OnProgress]:
    """Show how far something is: a bar in a terminal, a line every 30 seconds in a log.

    Args:
        label: What runs.

    Yields:
        A function of the number done, the total, and a short text such as the loss.
    """
    console = _open_console()
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[detail]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(visible(label), total=None, detail="")

            def update_bar(done: int, total: int, detail: str) -> None:
                values: dict[str, Any] = {"completed": done, "total": total or None}
                progress.update(task, detail=visible(detail), **values)

            yield update_bar
        return
    began = monotonic()
    first_report: tuple[float, int] | None = None  # seconds and number done
    last_line = began

    def write_line(done: int, total: int, detail: str) -> None:
        nonlocal first_report, last_line
        first_report = first_report or (monotonic(), done)
        if monotonic() - last_line < LOG_SECONDS:
            return
        last_line = monotonic()
        parts = [f"{done:,} of {total:,}"] if total else []
        parts += [detail] if detail else []
        parts.append(f"{format_duration(last_line - began)} elapsed")
        if done > first_report[1]:
            seconds_each = (last_line - first_report[0]) / (done - first_report[1])
            parts.append(f"about {format_duration(seconds_each * (total - done))} left")
        show_line(f"{label}: {', '.join(parts)}")

    show_line(f"{label} ...")
    yield write_line
    show_line(f"{label}: done in {format_duration(monotonic() - began)}")


def show_findings(findings: Any, with_details: bool = False) -> None:
    """Print the table of findings, and in sentences what it does not show."""
    show_table(findings_table(findings), with_details)
    for sentence in text.describe_findings(findings, with_verdicts=False):
        _open_console().print(Text(visible(sentence)))


def show_saved(run: Any) -> None:
    """Print where a run is kept and how you look at it."""
    show_line(f"run {run.run_id}")
    if run.artifact_uri.startswith("file:"):
        show_line(f"open {run.artifact_uri}/report.html")
    uri = redact(run.store_uri)
    show_line(f"see {'' if uri.startswith('http') else 'mlflow ui --backend-store-uri '}{uri}")


def show_budget_checks(checks: Sequence[BudgetCheck]) -> None:
    """Print each loss against its budget, and what holds for all of them."""
    sentences = {
        "within": "Passed: every loss is shown to be within its budget.",
        "beyond": "Failed: a loss beyond its budget is shown.",
        "undecided": "Undecided: no loss beyond its budget is shown, but not every loss is shown "
        "to be within.",
    }
    show_table(budgets_table(checks))
    show_line(sentences[overall_outcome(checks).name], "bold")
