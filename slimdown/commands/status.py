"""`slimdown status`: list the recorded runs, with their state: running, finished, stopped.

Examples:
  slimdown status           one line for each run
  slimdown status 3f2a      one run: its model, verdicts, page, and the adapter that it trained
"""

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

from slimdown.commands.arguments import RUN_HELP, CommandParser, put_table, run_command
from slimdown.comparison.run_records import RunRecord
from slimdown.config.tracking_config import TrackingConfig
from slimdown.report.console import show_facts
from slimdown.report.formatting import describe_model_place, find_local_path, shorten_path
from slimdown.report.tables import Cell, runs_table, write_table
from slimdown.tracking import resume, run_reader
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.utils.errors import TrackingError


def main(argv: list[str]) -> int:
    """List the runs of the record, those that are running first.

    Args:
        argv: The arguments after `status`.

    Returns:
        The exit code.
    """
    parser = CommandParser("status", __doc__)
    parser.add_argument("run", metavar="RUN", nargs="?", default="", help=RUN_HELP)
    parser.add_list("--experiment", "NAME", "of MLflow (default: all)")
    parser.add_text("--sweep", "NAME", "the runs that one command started")
    parser.add_rows("show at most this many runs that have ended")
    parser.add_output()
    options = parser.parse(argv)
    if options.run and (options.experiment or options.sweep or options.format):
        parser.error("you named one run: leave out --experiment, --sweep, --format and -o")
    show = _show_run if options.run else _list_runs
    return run_command(lambda: show(options), "The runs cannot be listed:", error_code=1)


def _show_run(options: argparse.Namespace) -> int:
    """Show what is known of one run, and where its files are; return 0.

    Raises:
        TrackingError: No run fits, or several do.
    """
    run = run_reader.find_run(options.tracking, options.run)
    facts = {
        "run": f"{run.run_id} ({run.name})",
        "status": _describe_state(options.tracking, run),
        "started": f"{run.started.astimezone():%Y-%m-%d %H:%M}",
        "experiment": run.experiment,
        "sweep": run.tags.get(Tag.sweep, ""),
        "base model": run.tags.get(Tag.model, ""),
        "rows": run.tags.get(Tag.dataset, ""),
        "tuned": run.tags.get(Tag.origin, ""),
        "verdicts": run.tags.get(Tag.headline, ""),
        "error": run.tags.get(Tag.error, ""),
        "note": run.note,
    }
    if page := find_local_path(run.artifact_uri):
        facts["page"] = shorten_path(f"{page}/report.html")
    if uri := run_reader.find_model_uri(options.tracking, run):
        facts["adapter"] = describe_model_place(uri, run.run_id)
    show_facts((heading, text) for heading, text in facts.items() if text)
    return 0


def _describe_state(tracking: TrackingConfig, run: RunRecord) -> str:
    """Return how a run stands; "died" is one that claims to run, and that no process works on."""
    if run.status == "RUNNING" and resume.is_abandoned(tracking, run):
        return "died"
    return run.status.lower()


def _list_runs(options: argparse.Namespace) -> int:
    """List the running runs, and below them the newest ones that have ended; return 0.

    Raises:
        TrackingError: No run fits the options, or the store cannot be read.
    """
    # Programs read the other formats, so these hold all runs. 0 stands for all.
    n_rows = options.rows if options.format in (None, "table") else 0
    find = partial(run_reader.find_runs, options.tracking, options.experiment, options.sweep)
    running = find(filter_string="attributes.status = 'RUNNING'")
    n_read = n_rows + 1 if n_rows else 0  # one more, to see whether there are more
    ended = find(filter_string="attributes.status != 'RUNNING'", n_newest=n_read)
    notes: tuple[str, ...] = ()
    if 0 < n_rows < len(ended):
        ended = ended[:n_rows]
        notes = (f"Only the newest {n_rows:,} runs that have ended. Add --rows 0 to see all.",)
    rows = []
    for run in [*running, *ended]:
        state = _describe_state(options.tracking, run)
        outcome = run.tags.get(Tag.error) or run.tags.get(Tag.headline, "")
        started = f"{run.started.astimezone():%Y-%m-%d %H:%M}"
        # People read the note and the outcome behind the name; programs get them as values.
        values = {"name": run.name, "experiment": run.experiment, "outcome": outcome}
        detail = "; ".join(filter(None, (run.note, outcome)))
        cell: Any = Cell(run.name, detail=detail, values=values | {"note": run.note})
        rows.append({"run_id": run.run_id, "status": state, "started": started, "run": cell})
    if not rows:
        raise TrackingError(
            "no run fits; slimdown status without options lists all runs of the record"
        )
    table = replace(runs_table(rows), notes=notes)
    return put_table(table, options, lambda: write_table(table, "html"))
