"""`slimdown check RUN`: a gate for CI. Has this fine-tuning lost more than it may?

A run with evaluation.holdout is judged on the questions that are held out.

Examples:
  slimdown check 3f2a --max-loss 0.02
  slimdown check 3f2a --register support --alias champion
  slimdown check 3f2a --against models:/support@champion --register support --alias champion

Exit code:
  0  every loss is shown to be within its budget
  1  a loss beyond its budget is shown (falsely in 5 % at most), or with --overall that the
     retained are worse together (2.5 %; exit code 1 is then false in 7.5 % at most)
  2  the questions cannot tell
  3  not measured: no such run, or it did not finish
"""

import argparse
from collections.abc import Callable
from functools import cache, partial

from slimdown.commands.arguments import RUN_HELP, CommandParser, run_command, write_notes
from slimdown.commands.gate import add_gate_options, name_budgets, read_rules
from slimdown.commands.lost_file import add_lost_option, write_lost_questions
from slimdown.comparison.run_records import RunRecord
from slimdown.config.methods import find_method
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import Gate, Outcome
from slimdown.judging.findings import judge
from slimdown.judging.holdout import open_part
from slimdown.judging.pairing import pair_evaluations
from slimdown.report import text
from slimdown.report.console import print_text, show_findings
from slimdown.report.findings_report import findings_table, write_junit
from slimdown.report.tables import write_table
from slimdown.tracking import registry, run_reader
from slimdown.tracking.held_out import take_held_out
from slimdown.tracking.metric_names import Tag
from slimdown.utils.errors import TrackingError

_SERVED_ADVICE = "slimdown compare {} --chain: is it the weights, or the template?"


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
    add_lost_option(parser)
    formats = ("text", "markdown", "junit", "json")
    about = "junit: XML with a test for each budget (default: text)"
    parser.add_argument("--format", choices=formats, default="text", help=about)
    about = "at exit code 0, register the run's model in MLflow by this name, once"
    parser.add_argument("--register", metavar="NAME", default="", help=about)
    about = "with --register: the alias that points to it then, such as champion"
    parser.add_argument("--alias", default="", help=about)
    about = "models:/NAME@ALIAS: judge by what is lost from that model, and not from the base"
    parser.add_argument("--against", metavar="URI", default="", help=about)
    options = parser.parse(name_budgets(argv))
    if options.alias and not options.register:
        parser.error("--alias names what --register registers; give --register NAME, too")
    return run_command(lambda: _check(options), "This run cannot be checked:", 3)


def _check(options: argparse.Namespace) -> int:
    rules = read_rules(options)
    if options.register:
        registry.check_names(options.register, options.alias)
    run = run_reader.find_run(options.tracking, options.run)
    findings, notes = run_reader.check_finished(run), list[str]()
    if options.register:
        registry.check_in_record(run)
    rules.resolve(findings)  # a mistake ends here, and counts as no look
    read: Callable[[], tuple[Evaluation, Evaluation]]
    read = cache(partial(run_reader.read_evaluations, options.tracking, run))
    base_name, share = run.params.get("model.id", "base"), run.holdout
    if options.against:
        champion = registry.find_registered(options.tracking, options.against)
        base_name = f"{champion.name} version {champion.version}"
        if champion.run.run_id == run.run_id:
            raise TrackingError(f"--against {options.against} is this run's own model")
        run_reader.check_finished(champion.run)
        share = max(share, champion.run.holdout)  # the larger one holds both out
        _, of_champion = run_reader.read_evaluations(options.tracking, champion.run)
        read = partial(_pair_with, of_champion, read)
        findings = judge(*read())  # runs that were asked otherwise end here, and count as no look
        notes.append(f"base is {base_name}: run {champion.run.run_id[:8]}.")
    lost_lines = list[str]()
    if options.lost:  # before any look counts: too few questions end here
        base, tuned = (open_part(one, share) for one in read())
        is_chat = run.params.get("evaluation.apply_chat_template", "").lower() == "true"
        lost_lines = write_lost_questions(options.lost, base, tuned, is_chat)
    served = None
    if findings.serving and not options.against:
        base, tuned = read()
        served = run_reader.read_served(options.tracking, run, tuned)
    if served:
        read = cache(lambda: (base, served))
        findings = judge(base, served, same_prompts=False)
        ways = "; ".join(run_reader.check_finished(run).serving)
        notes.append(f"Judged as it is served: {ways}.")
    if run.holdout:
        half = take_held_out(options.tracking, run, read(), run.holdout)
        read = half.pair
        notes.append(f"Judged on the held-out half (evaluation.holdout={run.holdout:g}).")
        notes += half.explain_looks()
        findings = judge(half.base, half.tuned, same_prompts=not served)
    gate = rules.decide(findings, lambda: pair_evaluations(*read(), same_prompts=not served))
    models = base_name, f"{run.name} ({run.run_id[:8]})"
    title, outcome = " → ".join(models), text.describe_outcome(gate)
    if options.format == "text":
        advice = _advise(run, gate) if not served else _SERVED_ADVICE.format(run.run_id[:8])
        show_findings(findings, title, gate, advice, notes)
    elif options.format == "junit":
        print_text(write_junit(gate, title))
    else:
        notes += text.describe_findings(findings, gate=gate)
        print_text(write_table(findings_table(findings, title, notes, gate), options.format))
    write_notes(lost_lines)
    try:
        run_reader.record_outcome(options.tracking, run, outcome)
    except TrackingError as error:
        write_notes([f"The record does not take the outcome: {error}"])
    if options.register and gate.outcome is Outcome.within:
        names = options.register, options.alias
        version = registry.register_model(options.tracking, run, *names, outcome)
        alias = f", {options.alias}" if options.alias else ""
        write_notes([f"registered: models:/{options.register}/{version}{alias}"])
    return int(gate.outcome)


def _pair_with(
    champion: Evaluation, read: Callable[[], tuple[Evaluation, Evaluation]]
) -> tuple[Evaluation, Evaluation]:
    """Return the champion's answers in the place of the base's."""
    return champion, read()[1]


def _advise(run: RunRecord, gate: Gate) -> str:
    """Name the step that lessens a loss of a recorded run."""
    if run.tags.get(Tag.origin):
        return text.ADVICE_ON_LOGS
    keeps = run.params.get("keep.name", "none") != "none"
    method = find_method(run.params["method.name"])
    return text.advise(run.run_id, method.scales, keeps, gate)
