"""`slimdown status`: the recorded runs: running, finished, stopped."""

import argparse
from dataclasses import replace
from typing import Any

from slimdown.commands.arguments import CommandParser, put_table, run_command
from slimdown.report.tables import Cell, runs_table, write_table
from slimdown.tracking import resume, run_reader
from slimdown.tracking.metric_names import Tag
from slimdown.utils.errors import TrackingError


def main(argv: list[str]) -> int:
    """List the runs of the record, those that are running first.

    Args:
        argv: The arguments after `status`.

    Returns:
        The exit code.
    """
    parser = CommandParser("status", __doc__)
    parser.add_list("--experiment", "NAME", "of MLflow (default: all)")
    text = "the runs that one command started"
    parser.add_argument("--sweep", metavar="NAME", default="", help=text)
    parser.add_rows("at most so many that have ended")
    parser.add_output()
    options = parser.parse(argv)
    return run_command(lambda: _list_runs(options), "The runs cannot be listed:", 1)


def _list_runs(options: argparse.Namespace) -> int:
    n_rows = options.rows if options.format in (None, "table") else 0
    is_running, choice = "attributes.status = 'RUNNING'", (options.experiment, options.sweep)
    runs = run_reader.find_runs(options.tracking, *choice, is_running)
    has_ended, n_read = is_running.replace("=", "!="), n_rows and n_rows + 1
    ended = run_reader.find_runs(options.tracking, *choice, has_ended, n_newest=n_read)
    is_cut = 0 < n_rows < len(ended)
    more = f"The newest {n_rows:,} that have ended; --rows 0 shows all."
    rows = []
    for run in [*runs, *ended[: n_rows or None]]:
        state = run.status.lower()
        if run.status == "RUNNING" and resume.is_abandoned(options.tracking, run):
            state = "died"
        outcome = run.tags.get(Tag.error) or run.tags.get(Tag.headline, "")
        started = f"{run.started.astimezone():%Y-%m-%d %H:%M}"
        values = {"name": run.name, "experiment": run.experiment, "outcome": outcome}
        detail = "; ".join(filter(None, (run.note, outcome)))
        cell: Any = Cell(run.name, detail=detail, values=values | {"note": run.note})
        rows.append({"run_id": run.run_id, "status": state, "started": started, "run": cell})
    if not rows:
        raise TrackingError("no run passes; slimdown status lists all runs of the record")
    table = replace(runs_table(rows), notes=(more,) if is_cut else ())
    return put_table(table, options, lambda: write_table(table, "html"))
