"""`slimdown check RUN`: check whether a run lost more than its budgets allow, for example in CI.

A run with evaluation.holdout is judged on its held-out questions.

Examples:
  slimdown check 3f2a --max-loss 0.02
  slimdown check 3f2a --register support --alias champion
  slimdown check 3f2a --against models:/support@champion --register support --alias champion

Exit code:
  0  PASSED: every loss is proven to be within its budget
  1  FAILED: a loss is proven to exceed its budget. This is wrong in at most 5 % of cases.
     With --overall also: the retained benchmarks are worse on average (wrong in at most 2.5 %
     of cases, so exit code 1 is wrong in at most 7.5 %).
  2  CANNOT TELL: there are too few questions
  3  Nothing was measured: there is no such run, or it did not finish
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial

from slimdown.commands.arguments import RUN_HELP, CommandParser, run_command, write_notes
from slimdown.commands.gate import add_gate_options, name_budgets, read_rules
from slimdown.commands.lost_file import add_lost_option, write_lost_questions
from slimdown.comparison.run_comparison import name_quantization
from slimdown.comparison.run_records import RunRecord
from slimdown.config.methods import find_method
from slimdown.config.tracking_config import TrackingConfig
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import Gate, Outcome
from slimdown.judging.findings import Findings, judge
from slimdown.judging.holdout import open_part
from slimdown.judging.pairing import Pair, pair_evaluations
from slimdown.report import text
from slimdown.report.console import print_text, show_findings
from slimdown.report.findings_report import findings_table, write_junit
from slimdown.report.formatting import find_local_path, shorten_path
from slimdown.report.tables import write_table
from slimdown.tracking import finished_runs, registry, run_reader
from slimdown.tracking.held_out import take_held_out
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.utils.errors import TrackingError

_SERVED_ADVICE = (
    "slimdown compare {} --chain shows whether the weights or the way of serving lost it"
)


def main(argv: list[str]) -> int:
    """Judge a recorded run by its budgets.

    Args:
        argv: The arguments after `check`.

    Returns:
        The exit code.
    """
    parser = CommandParser("check", __doc__, exit_code=3)
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    add_gate_options(parser, "benchmark.NAME.max_loss, or the margin of a retained benchmark")
    add_lost_option(parser)
    formats = ("text", "markdown", "junit", "json")
    format_help = "junit writes XML with one test for each budget (default: text)"
    parser.add_argument("--format", choices=formats, default="text", help=format_help)
    register_help = "if the check passes, register the model in MLflow under this name"
    parser.add_text("--register", "NAME", register_help)
    alias_help = "with --register: an alias for the registered model, such as champion"
    parser.add_text("--alias", "ALIAS", alias_help)
    uri_help = "models:/NAME@ALIAS: compare with this registered model instead of the base model"
    parser.add_text("--against", "URI", uri_help)
    options = parser.parse(name_budgets(argv))
    if options.alias and not options.register:
        parser.error("--alias needs --register NAME, which says what the alias points to")
    return run_command(lambda: _check(options), "This run cannot be checked:", error_code=3)


@dataclass(frozen=True)
class _Case:
    """What a gate judges: the answers of two models, and what they show.

    Attributes:
        run: The run whose tuned model is judged.
        findings: What changed from the first model to the second.
        read_answers: Returns the answers of the first model (the base model, or with --against a
            registered model) and of the tuned model. Their files are long, so they are read only
            where they are needed.
        base_name: The name of the first model.
        holdout: The larger of both runs' shares of held-out questions. What --lost writes is none
            of them.
        notes: Sentences for the user on what is compared.
        is_served: Whether the tuned model's answers are those that it gave as it is served.
    """

    run: RunRecord
    findings: Findings
    read_answers: Callable[[], tuple[Evaluation, Evaluation]]
    base_name: str
    holdout: float
    notes: tuple[str, ...] = ()
    is_served: bool = False

    def read_pairs(self) -> Mapping[str, Pair]:
        """Return both models' answers to the same questions, by benchmark."""
        if self.findings.pairs:
            return self.findings.pairs
        base, tuned = self.read_answers()  # findings that were read from a record hold no pairs
        return pair_evaluations(base, tuned)

    def judge_against(self, store: TrackingConfig, uri: str) -> "_Case":
        """Return the case in which a registered model takes the place of the base model.

        Args:
            store: The store of the record.
            uri: The registered model, such as models:/support@champion.

        Raises:
            ConfigError: The address is none of a registered model.
            DataError: The two runs were not asked the same questions in the same way.
            TrackingError: There is no such model, it is the run's own, or its answers are gone.
        """
        champion = registry.find_registered(store, uri)
        if champion.run.run_id == self.run.run_id:
            raise TrackingError(f"--against {uri} is this run's own model")
        run_reader.check_finished(champion.run)
        _, champion_evaluation = run_reader.read_evaluations(store, champion.run)
        _, tuned = self.read_answers()
        # This raises if the runs were asked differently, before `judge_held_out` counts this model
        # among those that the held-out questions have judged.
        findings = judge(champion_evaluation, tuned)
        name = f"{champion.name} version {champion.version}"
        return replace(
            self,
            findings=findings,
            read_answers=lambda: (champion_evaluation, tuned),
            base_name=name,
            # A larger share holds out all questions that a smaller one does.
            holdout=max(self.holdout, champion.run.holdout),
            notes=(*self.notes, f"The base is {name} (run {champion.run.run_id[:8]})."),
        )

    def judge_served(self, store: TrackingConfig) -> "_Case":
        """Return the case with the answers that the tuned model gave as it is served.

        A server may ask a model in another way than its base was asked, for example with another
        chat template. If the run asked its model in that way, too, these answers count, because
        users get them. Otherwise the case stays as it is.

        Raises:
            DataError: The answers cannot be compared with the base model's.
            TrackingError: The answers are gone or damaged.
        """
        if not self.findings.serving:  # the model is served in the way in which the base was asked
            return self
        base, tuned = self.read_answers()
        served = run_reader.read_served(store, self.run, tuned)
        if served is None:
            return self
        note = f"The model is judged as it is served: {'; '.join(self.findings.serving)}."
        return replace(
            self,
            findings=judge(base, served, same_prompts=False),
            read_answers=lambda: (base, served),
            notes=(*self.notes, note),
            is_served=True,
        )

    def judge_held_out(self, store: TrackingConfig) -> "_Case":
        """Return the case cut to the run's held-out questions, by which no run was chosen.

        The record counts this model among those that these questions have judged: each may pass by
        chance.

        Raises:
            DataError: There are too few questions, or the answers cannot be compared.
            TrackingError: The answers are gone or damaged.
        """
        held_out = take_held_out(store, self.run, self.read_answers(), self.run.holdout)
        note = f"Judged on the held-out questions (evaluation.holdout={self.run.holdout:g})."
        return replace(
            self,
            findings=judge(held_out.base, held_out.tuned, same_prompts=not self.is_served),
            read_answers=held_out.pair,
            notes=(*self.notes, note, *held_out.explain_looks()),
        )


def _check(options: argparse.Namespace) -> int:
    """Judge the run by its budgets, show and record the outcome, and return it as the exit code.

    The order matters: mistakes of the user are found before the record counts this model among
    those that the held-out questions have judged.

    Raises:
        ConfigError: A budget or a name is not valid, or names no benchmark of the run.
        DataError: The two models' answers cannot be compared, or there are too few questions.
        TrackingError: The run does not exist or is not finished, or the store cannot be used.
    """
    rules = read_rules(options)
    store = options.tracking
    if options.register:
        registry.check_names(options.register, options.alias)
    run = run_reader.find_run(store, options.run)
    findings = run_reader.check_finished(run)
    if options.register:
        registry.check_in_record(run)
    rules.check_fit(findings)
    read_answers = cache(partial(run_reader.read_evaluations, store, run))
    base_name = run.params.get("model.id", "base")
    case = _Case(run, findings, read_answers, base_name, holdout=run.holdout)
    if options.against:
        case = case.judge_against(store, options.against)
    # --lost lists answers in the way in which the base was asked, and no held-out questions. So it
    # is written before the case takes the answers of the served model or the held-out ones.
    lost_lines = _write_lost(case, options) if options.lost else []
    # With --against, both models are judged in the way in which the base was asked.
    if not options.against:
        case = case.judge_served(store)
    if run.holdout:
        case = case.judge_held_out(store)
    gate = rules.decide(case.findings, read_pairs=case.read_pairs)
    _write_report(case, gate, options.format)
    write_notes(lost_lines)
    outcome = text.describe_outcome(gate)
    try:  # the gate has decided already, so a store that takes no text changes no exit code
        finished_runs.record_outcome(store, run, outcome, _describe_budgets(options))
    except TrackingError as error:
        write_notes([f"The outcome could not be written to the record: {error}"])
    if options.register and gate.outcome is Outcome.within:
        version = registry.register_model(store, run, options.register, options.alias, outcome)
        alias = f", {options.alias}" if options.alias else ""
        write_notes([f"registered: models:/{options.register}/{version}{alias}"])
    return int(gate.outcome)


def _write_lost(case: _Case, options: argparse.Namespace) -> list[str]:
    """Write the questions that the tuned model lost to --lost, without held-out ones.

    Returns:
        Lines for the user, see `write_lost_questions`.

    Raises:
        DataError: There are too few questions to leave the held-out ones out.
    """
    base, tuned = (open_part(answers, case.holdout) for answers in case.read_answers())
    return write_lost_questions(
        options.lost,
        pair_evaluations(base, tuned),
        base.conditions,
        is_chat=case.run.params.get("evaluation.apply_chat_template", "").lower() == "true",
        model_settings=_name_tuned(options.tracking, case.run),
    )


def _describe_budgets(options: argparse.Namespace) -> str:
    """Name the options that set the budgets of a gate, and what was judged against."""
    words = ["check"]
    words += [f"--max-loss {text}" for text in options.max_loss]
    words += [f"--max-relative-loss {text}" for text in options.max_relative_loss]
    words += ["--overall"] if options.overall else []
    words += [f"--against {options.against}"] if options.against else []
    return " ".join(words)


def _name_tuned(store: TrackingConfig, run: RunRecord) -> list[str]:
    """Return the settings with which `slimdown run` asks a run's tuned model again."""
    tuned = run.params.get("tuned", "")
    if not tuned:
        place = find_local_path(run_reader.find_model_uri(store, run))
        tuned = shorten_path(place) if place else f"DIR-of-slimdown-export-{run.run_id[:8]}"
    kept = [f"{key}={run.params[key]}" for key in ("model.id", "model.dtype") if key in run.params]
    return ["model=any", *kept, f"tuned={tuned}", f"quantization={name_quantization(run.params)}"]


def _write_report(case: _Case, gate: Gate, format_: str) -> None:
    """Write what is found to the console, in the format that was asked for."""
    run, findings = case.run, case.findings
    title = f"{case.base_name} → {run.name} ({run.run_id[:8]})"
    if format_ == "text":
        served_advice = _SERVED_ADVICE.format(run.run_id[:8])
        advice = served_advice if case.is_served else _advise(run, findings, gate)
        show_findings(findings, title, gate, advice, notes=case.notes)
    elif format_ == "junit":
        print_text(write_junit(gate, title))
    else:
        notes = [*case.notes, *text.describe_findings(findings, gate=gate)]
        print_text(write_table(findings_table(findings, title, notes, gate), format_))


def _advise(run: RunRecord, findings: Findings, gate: Gate) -> str:
    """Name the step that lessens a loss of a recorded run."""
    if run.tags.get(Tag.origin) and "tuned" not in run.params:  # logs that `verdict` recorded
        return text.ADVICE_ON_LOGS
    tuned = run.params.get("tuned", "")  # a model made elsewhere; empty if the run trained it
    is_on_server = "://" in tuned  # then its weights are not here
    can_scale = not is_on_server if tuned else find_method(run.params["method.name"]).scales
    keeps = not tuned and run.params.get("keep.name", "none") != "none"
    return text.advise(
        run.run_id, findings, can_scale=can_scale, trains=not tuned, keeps=keeps, gate=gate
    )
