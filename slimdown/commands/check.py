"""`slimdown check RUN`: a gate for CI. Has this fine-tuning lost more than it may?

A run with evaluation.holdout is judged on the questions that are held out.

Exit code:
  0  every loss is shown to be within its budget
  1  a loss beyond its budget is shown (falsely in 5 % at most), or with --overall that the
     retained are worse together (2.5 %; exit code 1 is then false in 7.5 % at most)
  2  the questions cannot tell
  3  not measured: no such run, or it did not finish
"""

import argparse
import json
from functools import cache

from slimdown.commands.arguments import RUN_HELP, CommandParser, run_command
from slimdown.commands.gate import add_gate_options, name_budgets, read_rules
from slimdown.evaluation.results import Evaluation
from slimdown.judging.findings import judge
from slimdown.judging.holdout import held_part
from slimdown.report.console import print_text, show_budget_checks, show_line
from slimdown.report.findings_report import budgets_table
from slimdown.report.tables import write_table
from slimdown.tracking import run_reader


def main(argv: list[str]) -> int:
    """Judge a recorded run by its budgets.

    Args:
        argv: The arguments after `check`.

    Returns:
        The exit code.
    """
    parser = CommandParser("check", __doc__, 3)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_gate_options(parser, "benchmark.NAME.max_loss, or the margin if retained")
    formats = ("text", "markdown", "junit", "json")
    text = "junit: XML with a test for each budget (default: text)"
    parser.add_argument("--format", choices=formats, default="text", help=text)
    options = parser.parse(name_budgets(argv))
    return run_command(lambda: _check(options), "This run cannot be checked:", 3)


def _check(options: argparse.Namespace) -> int:
    rules = read_rules(options)
    run = run_reader.find_run(options.tracking, options.run)
    findings, notes = run_reader.check_finished(run), list[str]()

    @cache
    def read_judged() -> tuple[Evaluation, Evaluation]:
        base, tuned = run_reader.read_evaluations(options.tracking, run)
        if not run.holdout:
            return base, tuned
        return held_part(base, run.holdout), held_part(tuned, run.holdout)

    if run.holdout:
        findings = judge(*read_judged())
    gate = rules.decide(findings, read_judged)  # a mistake ends here, and counts as no look
    if run.holdout:
        notes.append(f"Judged on {findings.part}, which this run does not show.")
        if (n := run_reader.count_held_out_checks(options.tracking, run)) > 1:
            notes.append(
                f"The held-out half judged {n} runs of this sweep by now, and each may pass by "
                "luck, in 5 % of cases: choose one on the open half, or correct for the number "
                "with slimdown compare RUN RUN --confirm."
            )
    title = f"{run.name} ({run.run_id})"
    notes += gate.notes
    if options.format == "junit":
        print_text(gate.write_junit(title))
    elif options.format != "text":
        notes.append(f"Outcome: {gate.outcome.name}.")
        written = write_table(budgets_table(gate.checks, title, notes), options.format)
        if options.format == "json":
            decided = {"outcome": gate.outcome.name, "exit_code": gate.outcome}
            written = json.dumps(json.loads(written) | decided, indent=2, ensure_ascii=False) + "\n"
        print_text(written)
    else:
        for line in (title, *notes):
            show_line(line)
        show_budget_checks(gate.checks, gate.is_worse)
    return int(gate.outcome)
