"""What the commands have in common: options, errors in one line, exit codes that survive a pipe."""

import argparse
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from slimdown.config.methods import list_all_methods
from slimdown.config.mitigation import list_mitigations
from slimdown.config.tracking_config import DEFAULT_STORE, TrackingConfig, default_store
from slimdown.report.formatting import FORMATS
from slimdown.scoring.scores import list_scores
from slimdown.utils import files, hashing
from slimdown.utils.errors import ConfigError, SlimdownError
from slimdown.utils.extensions import GROUPS, list_extensions
from slimdown.utils.extras import explain_missing_packages
from slimdown.utils.secrets import redact
from slimdown.utils.tested_versions import explain_library_change

if TYPE_CHECKING:
    from slimdown.judging.budgets import Gate
    from slimdown.judging.findings import Findings
    from slimdown.report.tables import Table

VERBS = {
    "run": "fine-tune a model and measure what it learned and forgot; with -m many runs",
    "compare": "compare the runs of the record",
    "check": "check whether a run lost more than its budgets allow; for CI",
    "verdict": "judge two models from logs of lm_eval and other tools, or from tables",
    "export": "copy the adapter or model that a run trained into a folder",
    "merge": "merge the adapter of a run into its base model",
    "scale": "shrink an adapter's effect until its losses fit a budget",
    "sizes": "show how many parameters a run would train, and the memory it needs",
    "status": "list the recorded runs: running, finished, stopped",
    "delete": "delete runs with their files",
    "doctor": "show your device, versions and record, and which models you can download",
    "ui": "open the record in MLflow's web pages",
}
RUN_HELP = "the id of a run, the beginning of the id, or the name of a run"


class CommandParser(argparse.ArgumentParser):
    """Says what is wrong in one line; every command has --tracking-uri."""

    def __init__(self, verb: str, doc: str | None, exit_code: int = 2) -> None:
        """Take a command's name and its docstring; --help shows its first paragraph first."""
        settings: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
        settings["description"], _, settings["epilog"] = (doc or "").partition("\n\n")
        super().__init__(f"slimdown {verb}", allow_abbrev=False, **settings)
        self._exit_code = exit_code
        text = f"the MLflow store of the record (default: $MLFLOW_TRACKING_URI, or {DEFAULT_STORE})"
        store: Any = {"dest": "tracking", "metavar": "URI", "default": default_store()}
        self.add_argument("--tracking-uri", **store, type=_read_tracking, help=text)

    def error(self, message: str) -> NoReturn:
        """Exit with one line."""
        self.exit(_complain(f"{self.prog}: {message}; --help lists the options", self._exit_code))

    def add_rows(self, text: str) -> None:
        """Add --rows, which cuts a table on the console."""
        help_text = f"{text}, 0: all (default: 100)"
        self.add_argument("--rows", type=int, default=100, metavar="N", help=help_text)

    def add_output(self, **more: tuple[str, ...]) -> None:
        """Add --format, --output and --all; `more` are formats beside a table's, with endings."""
        text = "default: the format that the ending of --output means, or table"
        self._formats = FORMATS | more
        self.add_argument("--format", choices=self._formats, help=text)
        output_help = "write the result to this file"
        self.add_argument("-o", "--output", type=Path, metavar="FILE", help=output_help)
        all_help = "show every metric, column and sentence"
        self.add_argument("--all", action="store_true", help=all_help)

    def add_text(self, name: str, metavar: str, text: str, *, default: str | None = "") -> None:
        """Add an option that takes a text."""
        self.add_argument(name, metavar=metavar, default=default, help=text)

    def add_list(self, name: str, metavar: str, text: str) -> None:
        """Add an option that can be repeated."""
        help_text = f"{text}; you can repeat this option"
        self.add_argument(name, metavar=metavar, action="append", default=[], help=help_text)

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse arguments; set `format` if a file is written."""
        options = self.parse_args(argv)
        if (rows := vars(options).get("rows", 0)) < 0:
            self.error(f"--rows {rows} must not be negative; --rows 0 shows all rows")
        if output := vars(options).get("output"):
            options.format = self._find_format(output, options.format)
        return options

    def _find_format(self, output: Path, asked_format: str | None) -> str:
        """Return the format of the file that --output names, or exit if it cannot be written."""
        if os.path.isdir(output):  # `is_dir` raises where a name is too long
            self.error(f"-o {output} is a folder; name a file in it")
        formats = self._formats.items()
        by_ending = {ending: name for name, endings in formats for ending in endings}
        format_ = asked_format or by_ending.get(output.suffix.lower())
        if not format_:
            self.error(f"-o {output}: give it the ending {' or '.join(by_ending)}, or add --format")
        if not output.parent.is_dir():
            self.error(f"-o {output}: there is no folder {output.parent}; make it first")
        return format_


def _read_tracking(uri: str) -> TrackingConfig:
    return TrackingConfig(uri=uri, experiment="slimdown")


def put_table(
    table: "Table",
    options: argparse.Namespace,
    render_page: Callable[[], str],
    show_brief: Callable[[], None] | None = None,
) -> int:
    """Show a table on the console; with --output also write it to a file.

    With another format than `table` and without --output, stdout gets that format alone, for
    another program to read. The console shows the legend (how to read the table) only with --all.
    The file is written whole or not at all.

    Args:
        table: The table.
        options: Those of `CommandParser.add_output`: `format`, `output` and `all`.
        render_page: Returns the HTML page that the format html writes in place of the table.
        show_brief: Without --all, shows a shorter text on the console in place of the table. None:
            the table is shown.

    Returns:
        0, the exit code.
    """
    from slimdown.report.console import show_table
    from slimdown.report.tables import write_table

    format_ = options.format or "table"
    if format_ == "table" or options.output:
        if options.all:
            show_table(table, with_details=True)
        elif show_brief:
            show_brief()
        else:
            show_table(replace(table, legend=""))
    if format_ != "table" or options.output:
        text = render_page() if format_ == "html" else write_table(table, format_)
        put_text(text, options.output)
    return 0


def put_report(
    findings: "Findings",
    title: str,
    gate: "Gate | None",
    options: argparse.Namespace,
    run_id: str = "",
) -> None:
    """Write findings in the format of --format, to the file of --output or to stdout.

    The caller has shown them on the console before (`show_findings`), so for a table without
    --output there is nothing left to do. If an HTML page is written to a file, and the findings
    hold the answers, another page beside it shows all changed answers.

    Args:
        findings: What changed from one model to the other.
        title: Names the two models.
        gate: The checked budgets; None if there are none. The format junit needs them.
        options: Those of `CommandParser.add_output`, `format` and `output`.
        run_id: The id of the run in the record; empty if the findings are of no run.
    """
    from slimdown.report import findings_report, run_page, tables, text

    if options.format == "table" and not options.output:
        return
    if options.format == "junit" and gate:
        content = findings_report.write_junit(gate, title)
    elif options.format == "html":
        answers = ""
        if options.output and findings.base:
            answers = _put_answers(findings, title, options.output)
        content = run_page.render_page(findings, title, run_id=run_id, gate=gate, answers=answers)
    else:
        notes = text.describe_findings(findings, gate=gate)
        table = findings_report.findings_table(findings, title, notes, gate)
        content = tables.write_table(table, options.format)
    put_text(content, options.output)


def _put_answers(findings: "Findings", title: str, report: Path) -> str:
    """Write a page of all changed answers beside a report, and return the name of its file."""
    from slimdown.report.answers_page import name_answers_page, render_answers_page
    from slimdown.report.console import show_places

    page = report.with_name(name_answers_page(report.name))
    files.write_atomically(page, render_answers_page(findings, title, report.name, "the logs"))
    show_places({"answers": str(page)})
    return page.name


def put_text(text: str, output: Path | None) -> None:
    """Print a text for programs; with --output write it, whole or not at all."""
    from slimdown.report.console import print_text, show_places

    if output:
        files.write_atomically(output, text)
        show_places({"page" if output.suffix.startswith(".htm") else "file": str(output)})
    else:
        print_text(text)


def check_new_folder(option: str, folder: Path) -> None:
    """Check that a folder can be written: it is not there yet, or empty.

    Raises:
        ConfigError: Something is in it, or it is no folder.
    """
    is_free = folder.is_dir() and folder != Path.cwd() and not any(folder.iterdir())
    if os.path.lexists(folder) and not is_free:  # also a link that leads nowhere
        raise ConfigError(f"{option} {folder} is not empty; name a new folder, or empty this one")


@contextmanager
def make_folder(tracking: TrackingConfig, option: str, folder: Path) -> Iterator[Path]:
    """Yield a draft folder beside a new folder, and rename it to that at the end.

    So the new folder is there whole or not at all. If the caller raises, the draft is deleted. A
    lock keeps other processes of slimdown from writing the same folder meanwhile.

    Args:
        tracking: The store; its lock files are used.
        option: The option that names the folder, for the message: "--out".
        folder: The new folder; it may exist, but must be empty.

    Raises:
        ConfigError: Something is in the folder, perhaps because another process has just written
            it while this one waited for the lock.
        SlimdownError: The disk is full.
    """
    from slimdown.report.console import show_line
    from slimdown.tracking.store import wait_for_lock

    draft = folder.with_name(f".{folder.name}.draft")
    say_wait = partial(
        show_line, f"Another process is writing to {folder}; this one waits until it has ended."
    )
    with wait_for_lock(tracking, f"folder-{hashing.hash_json(str(folder))}", say_wait):
        check_new_folder(option, folder)
        shutil.rmtree(draft, ignore_errors=True)  # a process that was killed may have left one
        try:
            draft.mkdir(parents=True)
            yield draft
            draft.replace(folder)
        except Exception as error:
            files.raise_if_disk_full(error)
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def keep_stdout_clean(options: argparse.Namespace) -> AbstractContextManager[Any]:
    """Send what is printed inside to stderr, if stdout is for another program to read."""
    is_piped = options.format and not options.output
    return redirect_stdout(sys.stderr) if is_piped else nullcontext()


def check_extensions() -> None:
    """Import what other packages add, so that a broken one is refused before any work.

    Raises:
        ConfigError: Names the package.
    """
    if any(map(list_extensions, GROUPS)):
        from slimdown.evaluation.logs.read_logs import list_readers

        for table in (list_all_methods, list_mitigations, list_scores, list_readers):
            table()


def run_command(
    command: Callable[[], int], refusal: str, *, error_code: int, with_extensions: bool = True
) -> int:
    """Run a command and return its exit code; if it raises, show one message instead.

    A reader that closes the pipe early (`| head -1`) changes no exit code. Ctrl-C ends the command
    with the exit code 130.

    Args:
        command: Does the work, shows its result, and returns the exit code.
        refusal: The first line of an error's message, such as "This run cannot be checked:".
        error_code: The exit code if the command raises. Commands that judge return 0, 1 or 2, and
            have 3 here, so a script can tell an error from a result.
        with_extensions: Whether broken extensions of other packages are refused first.
    """
    try:
        with explain_missing_packages():
            if with_extensions:
                check_extensions()
            code = command()
    except (SlimdownError, OSError) as error:  # OSError: a file that vanished, a full device
        lines = [refusal, *str(error).splitlines(), *getattr(error, "__notes__", [])]
        code = _complain("\n  ".join(lines), error_code)
    except KeyboardInterrupt as stop:
        code = _complain(" ".join(["Interrupted.", *getattr(stop, "__notes__", [])]), 130)
    except Exception as error:  # Python itself would end with 1, which for `check` means FAILED
        changed = explain_library_change(error)
        text = "\n  ".join([refusal, *changed.splitlines()]) if changed else traceback.format_exc()
        code = _complain(text, error_code)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # The reader has gone, or the device is full. stdout now leads nowhere; otherwise Python
        # would flush it at its end and fail again. See "Note on SIGPIPE" in
        # https://docs.python.org/3/library/signal.html.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            code = _complain(f"{refusal}\n  the output cannot be written: {error}", error_code)
    return code


def write_notes(lines: Iterable[str]) -> None:
    """Write lines to stderr, without secrets and control characters."""
    from slimdown.report.formatting import encodable, visible

    if sys.stderr is not None:
        text = "".join(visible(redact(line), multiline=True) + "\n" for line in lines)
        # A key or path of a million letters would hide what is wrong with it.
        text = re.sub(r"(\S{100})\S{20,}(\S{80})", r"\1[...]\2", text)
        sys.stderr.write(encodable(text, getattr(sys.stderr, "encoding", None) or "ascii"))


def _complain(message: str, code: int) -> int:
    write_notes([message])
    return code
