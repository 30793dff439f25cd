"""`slimdown status`: the recorded runs: running, finished, stopped."""

import argparse
from typing import Any

from slimdown.commands.arguments import CommandParser, open_tracking, put_table, run_command
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
    parser.add_store()
    parser.add_list("--experiment", "NAME", "of MLflow (default: all)")
    text = "the runs that one command started"
    parser.add_argument("--sweep", metavar="NAME", default="", help=text)
    parser.add_output()
    options = parser.parse(argv)
    return run_command(lambda: _list_runs(options), "The runs cannot be listed:", 1)


def _list_runs(options: argparse.Namespace) -> int:
    tracking = open_tracking(options)
    rows = []
    for run in run_reader.find_runs(tracking, options.experiment, options.sweep):
        state = run.status.lower()
        if run.status == "RUNNING" and resume.is_abandoned(tracking, run):
            state = "died"
        outcome = run.tags.get(Tag.error) or run.tags.get(Tag.headline, "")
        started = f"{run.started.astimezone():%Y-%m-%d %H:%M}"
        values = {"name": run.name, "experiment": run.experiment, "outcome": outcome}
        cell: Any = Cell(run.name, detail=outcome, values=values)
        rows.append({"run_id": run.run_id, "status": state, "started": started, "run": cell})
    if not rows:
        raise TrackingError("no run passes; slimdown status lists all runs of the record")
    rows.sort(key=lambda row: row["status"] not in ("running", "died"))
    table = runs_table(rows)
    return put_table(table, options, lambda: write_table(table, "html"))
