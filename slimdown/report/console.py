"""Print the plan, the progress, the findings, and where they are saved.

In a terminal progress is a bar. In a log it is a plain line every 30 seconds.
"""

import os
import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from threading import Event, Thread
from time import monotonic
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column
from rich.text import Text

from slimdown.comparison.run_comparison import Comparison
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import Gate
from slimdown.judging.findings import Findings
from slimdown.report import text
from slimdown.report.brief_comparison import describe_briefly
from slimdown.report.findings_report import findings_table
from slimdown.report.formatting import (
    describe_model_place,
    encodable,
    find_local_path,
    format_duration,
    shorten_path,
    visible,
)
from slimdown.report.run_plan import RunPlan, describe_plan, plan_table, summarize_plans
from slimdown.report.stages_report import served_table
from slimdown.report.tables import PLAIN_WIDTH, Table, print_table
from slimdown.utils.progress import OnProgress
from slimdown.utils.secrets import redact, redact_leaf

LOG_SECONDS = 30.0  # between two lines of a log; the first comes after a quarter of it


class _StandardOutput:
    """Writes to sys.stdout, without characters that it cannot encode; nothing if it is closed."""

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
    """Open standard output; a terminal gets its own width and colors, a file or a pipe neither."""
    stream = cast(IO[str], _StandardOutput())
    # Without `force_terminal`, rich would also write colors into files where FORCE_COLOR is set, as
    # in notebooks and CI.
    is_terminal = stream.isatty()
    forced: dict[str, Any] = {"force_terminal": is_terminal, "force_jupyter": False}
    width = None if is_terminal else PLAIN_WIDTH
    return Console(file=stream, highlight=False, width=width, **forced)


def show_line(line: str, style: str = "") -> None:
    """Print one line as it is, without markup and control characters."""
    console = _open_console()
    # A terminal may break a line between words, but not an address. A file's lines stay whole.
    is_whole = not console.is_terminal or "://" in line
    console.print(Text(visible(line), style), soft_wrap=is_whole)


def show_notes(lines: Sequence[str]) -> None:
    """Print what you should know before you wait, one line each."""
    for line in lines:
        show_line(line, "yellow")


def show_table(table: Table, with_details: bool = False) -> None:
    """Print a table as wide as the terminal allows; details are extra columns and rows."""
    print_table(table if with_details else table.brief, _open_console())


def show_comparison(
    comparison: Comparison,
    title: str,
    notes: Sequence[str],
    max_rows: int = 0,
    by: str | None = None,
) -> None:
    """Print what each configuration learned and kept, in a table no wider than the console.

    Args:
        comparison: The compared runs.
        title: Which runs these are.
        notes: More lines below the table.
        max_rows: The most configurations to show; 0 shows all.
        by: The setting whose values are tested against each other; None: all that were varied.
    """
    console = _open_console()
    headings, table = describe_briefly(comparison, max_rows, by)
    console.print(Text(visible(title), "bold"))
    for line in headings:
        console.print(Text(visible(line)))
    print_table(replace(table, notes=(*table.notes, *notes)), console, fits=True)


def show_plans(plans: Sequence[RunPlan], n_finished: int) -> None:
    """Print how long a command takes, and what each kind of run does.

    Args:
        plans: One for each kind of run that is left to do.
        n_finished: How many runs of the command are finished already.
    """
    show_line(summarize_plans(plans, n_finished), "bold")
    for plan in plans:
        _open_console().print()
        show_table(plan_table(plan))
        for line in describe_plan(plan):
            _open_console().print(Text(visible(line)))


def print_text(content: str) -> None:
    """Print a finished text, such as CSV; a terminal gets it without control characters.

    Raises:
        OSError: The text cannot be written, for example because the disk is full.
    """
    stream = _StandardOutput()
    stream.write(visible(content, multiline=True) if stream.isatty() else content)


def show_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print lines, each of a heading and its content."""
    console = _open_console()
    for heading, content in facts:
        line = Text.assemble((f"{heading:<12}", "bold"), visible(redact_leaf(content)))
        console.print(line, soft_wrap=not console.is_terminal)  # a file's lines stay whole


@dataclass
class _Pace:
    """How far one stage is, and how fast it goes; as a text, what a bar or a log shows."""

    unit: str  # of what is counted, such as "steps"; empty if the stage counts nothing
    later: float = 0.0  # seconds that the stages after it take; 0: none, or not known
    began: float = field(default_factory=monotonic)
    # the last reports of progress: the time, and the number done; a second has one report
    recent: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=8))
    total: int = 0  # 0: not known
    detail: str = ""  # a few words, such as the loss or the benchmark

    def update(self, done: int, total: int, detail: str) -> None:
        """Take a report of progress: how many are done, how many there are, and a few words."""
        time, recent = monotonic(), self.recent
        # If the total changes or fewer are done, something new has begun, such as the next
        # benchmark. The pace so far says nothing about it, so older reports are forgotten.
        if recent and (total != self.total or done < recent[-1][1]):
            recent.clear()
        # The answers of a batch are reported one by one, at nearly the same time. They become one
        # report: it has the time of the first and the number of the last. If there is only one
        # report so far, this one stands beside it, because a pace needs two.
        if len(recent) > 1 and time - recent[-1][0] < 1:
            time, _ = recent.pop()
        if not recent or done > recent[-1][1]:
            recent.append((time, done))
        self.total, self.detail = total, detail

    def __str__(self) -> str:
        """Say what is done, and the time left or, if that is unknown, the time taken."""
        now = monotonic()
        reports = self.recent or [(now, 0)]
        first_time, n_before = reports[0]
        _, n_done = reports[-1]
        time = f"{format_duration(now - self.began)} elapsed"
        if n_done > n_before:
            # Count until now, so that a slow step makes the time left longer.
            left = (now - first_time) / (n_done - n_before) * (self.total - n_done)
            whole_run = f" (run: {format_duration(left + self.later)})" if self.later else ""
            time = f"{format_duration(left)} left{whole_run}"
        done = f"{n_done:,} of {self.total:,} {self.unit}" if self.total else ""
        return visible(", ".join(filter(None, (self.detail, done, time))))


@dataclass
class RunProgress:
    """Shows the stages of a run one after another, each with its number.

    The time left is that of the stage, or of its benchmark. The time left of the whole run is known
    from the beginning if runs of this model are recorded on this machine. Otherwise it is known
    once the base has answered, because the tuned model is asked the same.
    """

    n_stages: int
    n_begun: int = 0  # with the one that goes on
    # The seconds of the parts that have not begun, by their names: "base", "train", "tuned" and
    # "served". nan: not known.
    expected: dict[str, float] = field(default_factory=dict)

    def show(
        self, label: str, unit: str = "", part: str = ""
    ) -> AbstractContextManager[OnProgress]:
        """Show the next stage, as `progress_bar` does.

        Args:
            label: The stage's name.
            unit: What is counted, such as steps.
            part: Which key of `expected` the stage is; empty: none, because it takes little time.
        """
        self.n_begun += 1
        self.expected.pop(part, None)
        later = sum(self.expected.values())
        if not isfinite(later):  # the time of a part is not known
            later = 0.0
        return progress_bar(f"[{self.n_begun}/{self.n_stages}] {label}", unit, later)

    def expect_as(self, base_evaluation: Evaluation, served: Collection[str]) -> None:
        """Expect that the tuned model takes as long as the base.

        Args:
            base_evaluation: With the seconds that the base took for each benchmark.
            served: The benchmarks that the tuned model is asked again, as it will be served.
        """
        seconds = {name: result.seconds for name, result in base_evaluation.benchmarks.items()}
        self.expected["tuned"] = sum(seconds.values())
        self.expected["served"] = sum(seconds[name] for name in served)


@contextmanager
def progress_bar(label: str, unit: str = "", later: float = 0.0) -> Iterator[OnProgress]:
    """Show how far a stage is: a bar in a terminal, a line every 30 seconds in a log.

    Args:
        label: The stage's name.
        unit: What is counted, such as steps.
        later: How many seconds the later stages take, for the time left of the whole run. 0 means
            that none follows or that it is not known; then only this stage's time left is shown.

    Yields:
        A function that takes progress: the number done, the total (0: not known), and a short text
        such as the loss.
    """
    pace = _Pace(unit, later)
    console = _open_console()
    label = redact(label)
    if console.is_terminal:
        name = TextColumn("{task.description}", markup=False)
        status = TextColumn("{task.fields[pace]}", markup=False, table_column=Column())  # may wrap
        bar = Progress(SpinnerColumn(), name, BarColumn(8), status, console=console, transient=True)
        with bar:
            task = bar.add_task(visible(label), total=None, pace=pace)

            def update_bar(done: int, total: int, detail: str) -> None:
                pace.update(done, total, detail)
                bar.update(task, completed=done, total=total or None)

            yield update_bar
        return
    # A log gets its lines from a thread, because a model may report nothing for minutes.
    is_over = Event()
    has_written = False

    def write_lines() -> None:
        nonlocal has_written
        seconds = LOG_SECONDS / 4  # the first line comes early, for users who wait for a hub
        while not is_over.wait(seconds):
            show_line(f"{label}: {pace}")
            seconds = LOG_SECONDS
            has_written = True

    show_line(f"{label} ...")
    writer = Thread(target=write_lines, daemon=True)
    writer.start()
    try:
        yield pace.update
    finally:
        is_over.set()
        writer.join()
    if has_written:  # a short stage needs no line for its end: the next stage's line follows
        show_line(f"{label}: done in {format_duration(monotonic() - pace.began)}")


def show_findings(
    findings: Findings,
    title: str = "",
    gate: Gate | None = None,
    advice: str = "",
    *,
    notes: Sequence[str] = (),
    with_details: bool = False,
) -> None:
    """Print the outcome of a gate, the table, and a few sentences, or all with `with_details`.

    Args:
        findings: What is shown.
        title: The two models, with an arrow between them.
        gate: The budgets and their outcomes; None if there are no budgets.
        advice: The step that lessens a loss, for the line that begins with "Next:".
        notes: Sentences above all others.
        with_details: Show every metric and column, and every sentence.
    """
    table = findings_table(findings, title, gate=gate)
    show_table(replace(table, legend=""), with_details)
    sentences = [*notes]
    if with_details:  # the legend comes with the sentences, not below the table
        everything = text.describe_findings(findings, with_verdicts=False, gate=gate)
        sentences += ["How to read this:", table.legend, *everything]
    else:  # four sentences at most, with the notes
        sentences += text.summarize_briefly(findings, gate, advice, most=4 - len(notes))
    for sentence in sentences:
        _open_console().print(Text(visible(sentence)))
    served = served_table(findings)
    if served:  # the model is served otherwise than the base was asked
        _open_console().print()
        show_table(replace(served, legend=served.legend if with_details else ""))


def show_places(places: Mapping[str, str]) -> None:
    """Print where something is, one place a line, which is never broken."""
    for name, place in places.items():
        _open_console().print(Text(f"{name:<9}{visible(redact(place))}"), soft_wrap=True)


def show_saved(run: Any, trained: str = "adapter") -> None:
    """Print where a run's page and what it trained are; of a server, the run's id and its address.

    Args:
        run: With `run_id`, `artifact_uri`, `store_uri` and `model_uri`. `model_uri` is empty if the
            run trained nothing.
        trained: What the run trained: "adapter" or "model".
    """
    folder = find_local_path(run.artifact_uri)
    if folder:
        show_places({"run": run.run_id[:8], "page": shorten_path(f"{folder}/report.html")})
    else:  # a server has the page, so the run's whole id is needed to find it
        show_places({"run": run.run_id, "record": run.store_uri})
    if run.model_uri:
        show_places({trained: describe_model_place(run.model_uri, run.run_id)})
