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
from math import isnan

from slimdown.commands.arguments import RUN_HELP, CommandParser, run_command
from slimdown.config.schema import Role
from slimdown.judging.budgets import Outcome, check_budgets, overall_outcome, read_budgets
from slimdown.judging.findings import judge
from slimdown.judging.holdout import held_part
from slimdown.report.console import print_text, show_budget_checks, show_line
from slimdown.report.findings_report import budgets_table, write_junit
from slimdown.report.tables import write_table
from slimdown.report.text import describe_overall, describe_unchecked
from slimdown.tracking import run_reader
from slimdown.utils.errors import ConfigError


def main(argv: list[str]) -> int:
    """Judge a recorded run by its budgets.

    Args:
        argv: The arguments after `check`.

    Returns:
        The exit code.
    """
    parser = CommandParser("check", __doc__, 3)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    text = "gsm8k=0.02: two points; the others: benchmark.NAME.max_loss, or the margin if retained"
    parser.add_list("--max-loss", "[BENCHMARK=]SHARE", text)
    text = "gsm8k=0.05: a twentieth of what the base scored"
    parser.add_list("--max-relative-loss", "[BENCHMARK=]SHARE", text)
    parser.add_list("--only", "BENCHMARK", "check this one and leave the others out")
    parser.add_list("--supporting", "BENCHMARK", "its loss is shown and decides nothing")
    text = "also fail where the retained benchmarks are shown to be worse on average"
    parser.add_argument("--overall", action="store_true", help=text)
    formats = ("text", "markdown", "junit", "json")
    text = "junit: XML with a test for each budget (default: text)"
    parser.add_argument("--format", choices=formats, default="text", help=text)
    options = parser.parse(argv)
    return run_command(lambda: _check(options), "This run cannot be checked:", 3)


def _check(options: argparse.Namespace) -> int:
    relative = read_budgets(options.max_relative_loss, "--max-relative-loss")
    budgets = read_budgets(options.max_loss), relative
    run = run_reader.find_run(options.tracking, options.run)
    findings = run_reader.check_finished(run)
    notes: list[str] = []
    if run.holdout or options.overall:
        base, tuned = run_reader.read_evaluations(options.tracking, run)
    if run.holdout:
        base, tuned = (held_part(one, run.holdout) for one in (base, tuned))
        findings = judge(base, tuned)
        notes.append(f"Judged on {findings.part}, which this run does not show.")
        if (n := run_reader.count_held_out_checks(options.tracking, run)) > 1:
            notes.append(
                f"The held-out half judged {n} runs of this sweep by now, and each may pass by "
                "luck, in 5 % of cases: choose one on the open half, or correct for the number "
                "with slimdown compare RUN RUN --confirm."
            )
    checks = check_budgets(findings, *budgets, options.supporting, options.only)
    notes += describe_unchecked(checks, findings) if options.only else []
    outcome = overall_outcome(checks)
    title, is_worse = f"{run.name} ({run.run_id})", False
    if options.overall:
        counted = set(options.only or findings.benchmarks) - set(options.supporting)
        for name in set(findings.benchmarks) - counted:
            del base.benchmarks[name], tuned.benchmarks[name]
        mean = judge(base, tuned).mean_change(Role.retained)
        if isnan(mean.value):
            raise ConfigError("--overall: every retained benchmark is supporting or left out")
        notes.append(describe_overall(mean))
        is_worse = mean.high < 0
        outcome = Outcome.beyond if is_worse else outcome
    if options.format == "junit":
        name = "the retained benchmarks are not worse together"
        print_text(write_junit(checks, title, {name: notes[-1]} if is_worse else {}))
    elif options.format != "text":
        notes.append(f"Outcome: {outcome.name}.")
        written = write_table(budgets_table(checks, title, notes), options.format)
        if options.format == "json":
            content = json.loads(written) | {"outcome": outcome.name, "exit_code": outcome}
            written = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        print_text(written)
    else:
        for line in (title, *notes):
            show_line(line)
        show_budget_checks(checks, is_worse)
    return int(outcome)
