"""`slimdown delete RUN ...`: delete runs with their pages, answers and adapters.

Without --yes, the command only shows what it would delete. The base model and its answers are
kept, because other runs use them.

Examples:
  slimdown delete 3f2a
  slimdown delete 3f2a 91bc --yes
"""

import argparse

from slimdown.commands.arguments import RUN_HELP, CommandParser, run_command
from slimdown.report.console import show_line
from slimdown.report.formatting import format_bytes, pluralize, shorten_path
from slimdown.tracking import run_reader
from slimdown.tracking.deletion import delete_run, plan_deletion


def main(argv: list[str]) -> int:
    """Delete recorded runs.

    Args:
        argv: The arguments after `delete`.

    Returns:
        The exit code.
    """
    parser = CommandParser("delete", __doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help=RUN_HELP)
    parser.add_argument("--yes", action="store_true", help="delete the runs for good")
    options = parser.parse(argv)
    return run_command(lambda: _delete(options), "These runs cannot be deleted:", error_code=1)


def _delete(options: argparse.Namespace) -> int:
    """Show what would be deleted; with --yes, delete it. Return 0.

    Raises:
        TrackingError: There is no such run, or it cannot be deleted.
    """
    named = [run_reader.find_run(options.tracking, text) for text in options.runs]
    runs = {run.run_id: run for run in named}.values()  # each one once
    plans = [plan_deletion(options.tracking, run) for run in runs]
    for plan in plans:
        size = f"{pluralize(len(plan.model_ids), 'model')}, {format_bytes(plan.n_bytes)} of files"
        show_line(f"{plan.run.run_id[:8]} {plan.run.name}: {size}")
        for folder in plan.folders:
            show_line(f"  {shorten_path(str(folder))}")
    if not options.yes:
        show_line("Nothing is deleted yet. To delete this for good, add --yes.")
        return 0
    for plan in plans:
        delete_run(options.tracking, plan)
        show_line(f"deleted: {plan.run.run_id[:8]} {plan.run.name}")
    if any(plan.is_remote for plan in plans):
        advice = "remain until its owner runs mlflow gc."
        show_line(f"Files in other places, such as on a server, {advice}")
    return 0
