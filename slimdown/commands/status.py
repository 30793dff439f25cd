"""`slimdown status`: the recorded runs: running, finished, stopped."""

import argparse
from typing import Any

from slimdown.commands.arguments import CommandParser, open_tracking, put_table, run_command


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
    parser.add_argument(
        "--sweep", metavar="NAME", default="", help="the runs that one command started"
    )
    parser.add_output()
    options = parser.parse(argv)
    return run_command(lambda: _list_runs(options), "The runs cannot be listed:", 1)


def _list_runs(options: argparse.Namespace) -> int:
    from slimdown.report.record_tables import runs_table
    from slimdown.report.tables import Cell, write_table
    from slimdown.tracking.metric_names import Tag
    from slimdown.tracking.resume import is_abandoned
    from slimdown.tracking.run_reader import find_runs
    from slimdown.utils.errors import TrackingError

    tracking = open_tracking(options)
    rows = []
    for run in find_runs(tracking, options.experiment, options.sweep):
        state = run.status.lower()
        if run.status == "RUNNING" and is_abandoned(tracking, run):
            state = "died"
        outcome = run.tags.get(Tag.error) or run.tags.get(Tag.headline, "")
        row: dict[str, Any] = {"run_id": run.run_id, "status": state}
        row["started"] = f"{run.started.astimezone():%Y-%m-%d %H:%M}"
        values = {"name": run.name, "experiment": run.experiment, "outcome": outcome}
        rows.append(row | {"run": Cell(run.name, detail=outcome, values=values)})
    if not rows:
        raise TrackingError("no run passes; slimdown status lists all runs of the record")
    rows.sort(key=lambda row: row["status"] not in ("running", "died"))
    table = runs_table(rows)
    return put_table(table, options, lambda: write_table(table, "html"))
