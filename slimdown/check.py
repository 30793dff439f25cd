"""`python -m slimdown.check RUN`: a gate for CI. Has this fine-tuning lost more than it may?

A run that held questions out (`evaluation.holdout`) is judged on these alone.

Exit code 0: every loss is shown to be within its budget. 1: a loss beyond its budget is shown. 2: the data cannot tell.
3: the question could not be asked.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from slimdown.config.arguments import Parser, add_budgets, add_store, exit_with, store_to_read
from slimdown.stats.budget import Outcome, hold_to_budgets, overall, read_budgets
from slimdown.stats.changes import changes_between


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = Parser(
        exit_code=Outcome.unasked,  # argparse's own 2 means here that data cannot tell
        prog="python -m slimdown.check",
        description=(__doc__ or "").split("\n\n", 1)[0],
        epilog="exit code: 0 within every budget, 1 beyond one, 2 the data cannot tell, 3 could not be asked",
    )
    parser.add_argument("run", metavar="RUN", help="a run's id, the beginning of it, or its name")
    add_budgets(parser, otherwise="benchmark.NAME.max_loss, else every retained benchmark's margin")
    add_store(parser)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> NoReturn:
    """Answer on the console and by the exit code."""
    options = arguments(sys.argv[1:] if given is None else given)
    exit_with(lambda: _answer(options), "This run cannot be checked:", Outcome.unasked)


def _answer(options: argparse.Namespace) -> Outcome:
    from rich.console import Console

    from slimdown.report.console import show_judgements
    from slimdown.stats.holdout import held_out_part
    from slimdown.tracking.read import (  # mlflow's import takes a second: not for --help
        read_evaluation,
        read_run,
    )

    budgets = read_budgets(options.max_loss)
    store = store_to_read(options.tracking_uri)
    run = read_run(store, options.run)
    base, tuned = (read_evaluation(store, run, model) for model in ("base", "tuned"))
    if run.holdout:  # the questions that did not choose this run, and no others
        base, tuned = (held_out_part(report, run.holdout) for report in (base, tuned))
    changes = changes_between(base, tuned)
    judged = hold_to_budgets(changes, budgets)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{run.name}  ({run.run_id})", markup=False)
    if changes.part:
        console.print(f"Judged on {changes.part}, which this run does not show.", markup=False)
    show_judgements(judged, console)
    return overall(judged)


if __name__ == "__main__":
    main()
