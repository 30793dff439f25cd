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
from functools import partial

from slimdown.commands.arguments import RUN_HELP, CommandParser, run_command, write_notes
from slimdown.commands.gate import add_gate_options, name_budgets, read_rules
from slimdown.comparison.run_records import RunRecord
from slimdown.config.methods import METHODS, Method
from slimdown.judging.budgets import Gate
from slimdown.judging.findings import judge
from slimdown.report import text
from slimdown.report.console import print_text, show_findings
from slimdown.report.findings_report import findings_table, write_junit
from slimdown.report.tables import write_table
from slimdown.tracking import run_reader
from slimdown.tracking.held_out import take_held_out
from slimdown.tracking.metric_names import Tag
from slimdown.utils.errors import TrackingError


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
    about = "junit: XML with a test for each budget (default: text)"
    parser.add_argument("--format", choices=formats, default="text", help=about)
    options = parser.parse(name_budgets(argv))
    return run_command(lambda: _check(options), "This run cannot be checked:", 3)


def _check(options: argparse.Namespace) -> int:
    rules = read_rules(options)
    run = run_reader.find_run(options.tracking, options.run)
    findings, notes = run_reader.check_finished(run), list[str]()
    if run.holdout:
        rules.check(findings)  # a mistake ends here, and counts as no look
        evaluations = run_reader.read_evaluations(options.tracking, run)
        half = take_held_out(options.tracking, run, evaluations, run.holdout)
        findings = judge(half.base, half.tuned)
        notes.append(f"Judged on the held-out half (evaluation.holdout={run.holdout:g}).")
        notes += half.explain_looks()
        gate = rules.decide(findings, lambda: (half.base, half.tuned))
    else:
        read = partial(run_reader.read_evaluations, options.tracking, run)
        gate = rules.decide(findings, read)
    models = run.params.get("model.id", "base"), f"{run.name} ({run.run_id[:8]})"
    title, outcome = " → ".join(models), text.describe_outcome(gate)
    if options.format == "text":
        show_findings(findings, title, gate, _advise(run, gate), notes)
    elif options.format == "junit":
        print_text(write_junit(gate, title))
    else:
        notes += text.describe_findings(findings, gate=gate)
        print_text(write_table(findings_table(findings, title, notes, gate), options.format))
    try:
        run_reader.record_outcome(options.tracking, run, outcome)
    except TrackingError as error:
        write_notes([f"The record does not take the outcome: {error}"])
    return int(gate.outcome)


def _advise(run: RunRecord, gate: Gate) -> str:
    """Name the step that lessens a loss of a recorded run."""
    if run.tags.get(Tag.origin):
        return text.ADVICE_ON_LOGS
    keeps = run.params.get("keep.name", "none") != "none"
    method = METHODS[Method(run.params["method.name"])]
    return text.advise(run.run_id, method.scales, keeps, gate)
