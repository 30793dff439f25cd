"""`python -m slimdown.check RUN`: a gate for CI. Has this fine-tuning lost more than it may?

A run that held questions out (`evaluation.holdout`) is judged on these alone.

Exit code 0: every loss is shown to be within its budget. 1: a loss beyond its budget is shown. 2: the data cannot tell.
3: the question could not be asked.
"""

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import isnan
from typing import NoReturn

from slimdown.guarding.errors import UserError
from slimdown.judging.changes import BenchmarkChange, Changes, changes_between
from slimdown.judging.paired import ALPHA, CLUSTERED_T, Difference, holm
from slimdown.settings.arguments import Parser, add_store, store_to_read
from slimdown.settings.keys import nearest
from slimdown.settings.schema import Role


class Outcome(IntEnum):
    """What is shown, as the exit code that says it."""

    within = 0
    beyond = 1
    undecided = 2
    unasked = 3


@dataclass(frozen=True)
class Judgement:
    """One benchmark's loss against its budget."""

    benchmark: str
    change: BenchmarkChange
    budget: float
    outcome: Outcome
    reason: str


def judge(report: Changes, budgets: dict[str, float]) -> list[Judgement]:
    """For each benchmark with a budget, whether its loss is shown to be within it, beyond it, or neither.

    Args:
        report: a fine-tuning's changes.
        budgets: by benchmark, the most that the primary metric may fall; a share, 0.02 is two points.

    One-sided tests at 5 %. To pass, every loss must be shown to be within its budget, which needs no correction (an
    intersection-union test); one loss beyond is enough to fail, so those p-values are corrected (Holm).
    """
    differences = {name: report.benchmarks[name].primary.difference for name in budgets}
    beyond = holm([differences[name].p_value_below(-budget) for name, budget in budgets.items()])
    judged = []
    for (name, budget), p_beyond in zip(budgets.items(), beyond, strict=True):
        benchmark, d = report.benchmarks[name], differences[name]
        p_within = d.p_value_above(-budget)
        interval = "" if isnan(d.low) else f" [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
        lost = f"changed by {100 * d.value:+.1f} points{interval}" + (f", for {d.population}" if d.n_groups else "")
        if p_within < ALPHA:
            outcome, reason = Outcome.within, f"{lost}: a loss of {100 * budget:g} points or more is ruled out"
        elif p_beyond < ALPHA:
            outcome, reason = Outcome.beyond, f"{lost}: a loss of more than {100 * budget:g} points is shown"
        else:
            outcome, reason = Outcome.undecided, f"{lost}: {_why_undecided(d, budget)}"
        judged.append(Judgement(name, benchmark, budget, outcome, reason))
    return judged


def _why_undecided(d: Difference, budget: float) -> str:
    """What keeps a loss from being shown on either side of its budget, and what would help."""
    if d.n == 1:
        return "1 question cannot tell"
    if isnan(d.standard_error):
        return f"all {d.n:,} questions changed by the same, which does not tell how others would"
    if d.test == CLUSTERED_T:
        return f"{d.n_groups} subjects differ too much to tell; more subjects would, more questions of these would not"
    if n := d.n_to_bound(-budget):
        return f"{d.n:,} questions cannot tell; about {n:,} would"
    return f"{d.n:,} questions cannot tell; it lies too near the budget for any number to"


def overall(judged: Sequence[Judgement]) -> Outcome:
    """What holds for the run: beyond if any is, else undecided if any is, else within."""
    outcomes = {judgement.outcome for judgement in judged}
    return next(o for o in (Outcome.beyond, Outcome.undecided, Outcome.within) if o in outcomes)


def read_budgets(asked: Sequence[str]) -> dict[str, float]:
    """What each benchmark may lose, of arguments such as gsm8k=0.02.

    Raises:
        UserError: a share that is none, or two for one benchmark.
    """
    budgets: dict[str, float] = {}
    for text in asked:
        name, _, value = text.partition("=")
        try:
            budget = float(value)
        except ValueError:
            budget = -1.0
        if not name or not 0 <= budget < 1:
            raise UserError(
                f"--max-loss {text}: give a share from 0 up to, not including, 1; {name or 'gsm8k'}=0.02 is two points"
            )
        if name in budgets:
            raise UserError(f"--max-loss {text}: {name} has a budget already, {budgets[name]:g}; keep one of the two")
        budgets[name] = budget
    return budgets


def budgets_for(report: Changes, budgets: dict[str, float]) -> dict[str, float]:
    """The budgets to hold a run to: those given, or each retained benchmark's margin if none is.

    Raises:
        UserError: a benchmark that the run was not measured on.
    """
    if not budgets:
        chosen = {name: b.margin for name, b in report.benchmarks.items() if b.role is Role.retained}
        if not chosen:
            raise UserError("this run measured no retained benchmark; name one with --max-loss NAME=0.02")
        return chosen
    for name in budgets:
        if name not in report.benchmarks:
            raise UserError(f"--max-loss: the run has no benchmark {name}{nearest(name, list(report.benchmarks))}")
    return budgets


class _Parser(Parser):
    exit_code = Outcome.unasked  # argparse's own 2 means here that data cannot tell


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """What the command line asks for."""
    parser = _Parser(
        prog="python -m slimdown.check",
        description=(__doc__ or "").split("\n\n", 1)[0],
        epilog="exit code: 0 within every budget, 1 beyond one, 2 the data cannot tell, 3 could not be asked",
    )
    parser.add_argument("run", metavar="RUN", help="a run's id, the beginning of it, or its name")
    parser.add_argument(
        "--max-loss",
        metavar="BENCHMARK=SHARE",
        nargs="+",
        action="extend",
        default=[],
        help="what a benchmark may lose: gsm8k=0.02 is two points; without it every retained benchmark's margin",
    )
    add_store(parser)
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> NoReturn:
    """Answer on the console and by the exit code."""
    try:
        sys.exit(_answer(arguments(sys.argv[1:] if given is None else given)))
    except UserError as error:
        sys.stderr.write(f"This run cannot be checked:\n  {error}\n")
        sys.exit(Outcome.unasked)
    except Exception:  # whatever it is, it must not look like a verdict: Python's own exit code is 1
        traceback.print_exc()
        sys.exit(Outcome.unasked)


def _answer(given: argparse.Namespace) -> Outcome:
    from rich.console import Console
    from rich.text import Text

    from slimdown.judging.holdout import held_out_part
    from slimdown.recording.read import read_evaluation, read_run  # mlflow's import takes a second: not for --help

    budgets = read_budgets(given.max_loss)
    store = store_to_read(given.tracking_uri)
    run = read_run(store, given.run)
    base, tuned = (read_evaluation(store, run, model) for model in ("base", "tuned"))
    if run.holdout:  # the questions that did not choose this run, and no others
        base, tuned = (held_out_part(report, run.holdout) for report in (base, tuned))
    try:
        report = changes_between(base, tuned)
    except ValueError as error:
        raise UserError(str(error)) from None
    judged = judge(report, budgets_for(report, budgets))
    console = Console(highlight=False, soft_wrap=True)
    styles = {Outcome.within: "green", Outcome.beyond: "red", Outcome.undecided: "yellow"}
    width = max(len(judgement.benchmark) for judgement in judged)
    console.print(f"{run.name}  ({run.run_id})", markup=False)
    if report.part:
        console.print(f"Judged on {report.part}, which this run does not show.", markup=False)
    for judgement in judged:
        shown = (f"{judgement.outcome.name:<9}", styles[judgement.outcome])
        console.print(Text.assemble(shown, f"  {judgement.benchmark:<{width}}  {judgement.reason}"))
    outcome = overall(judged)
    sentence = {
        Outcome.within: "Passed: every loss is shown to be within its budget.",
        Outcome.beyond: "Failed: a loss beyond its budget is shown.",
        Outcome.undecided: "Undecided: no loss beyond its budget is shown, and not every one is shown to be within.",
    }
    console.print(f"[bold {styles[outcome]}]{sentence[outcome]}[/]")
    console.print("Of this checkpoint, for questions like these where no subjects are named.", style="dim")
    return outcome


if __name__ == "__main__":
    main()
