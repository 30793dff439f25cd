"""`slimdown verdict BASE TUNED`: judge from logs of other tools what a model learned and forgot.

  slimdown verdict logs/base logs/a logs/b                        several models, each against BASE
  slimdown verdict --chain logs/base logs/tuned logs/merged logs/q4     which stage lost what

  lm_eval    slimdown verdict logs/base logs/tuned      (--log_samples --output_path)
  Inspect    slimdown verdict base.eval tuned.eval      (pip install '.[inspect]')
  lighteval  slimdown verdict out/base out/tuned        (--save-details --output-dir)
  Every Eval Ever  slimdown verdict data/gsm8k/me/base data/gsm8k/me/tuned   (schema 0.3)
  tables     slimdown verdict base.csv tuned.csv        (.jsonl, .parquet: id, score; prompt, ...)

Exit code with a budget (--max-loss, ..., --overall) or JUnit:
  0  PASSED: every loss is proven to be within its budget
  1  FAILED: a loss is proven to exceed its budget; with --overall also: the retained benchmarks
     are worse on average
  2  CANNOT TELL: there are too few questions
  3  the logs cannot be judged
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from slimdown.commands import arguments
from slimdown.commands.gate import add_gate_options, name_budgets, read_rules
from slimdown.commands.lost_file import add_lost_option, write_lost_questions
from slimdown.evaluation.logs.read_logs import find_logs, read_logs
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import Gate, read_budgets
from slimdown.judging.common_questions import take_common
from slimdown.judging.findings import Findings, judge
from slimdown.judging.stages import judge_stages
from slimdown.report import text
from slimdown.report.answers_page import render_answers_page
from slimdown.report.console import show_findings, show_saved
from slimdown.report.findings_report import findings_table, write_junit
from slimdown.report.formatting import drop_shared_beginning
from slimdown.report.run_page import render_page
from slimdown.report.stages_report import render_stages_page, stages_table
from slimdown.report.tables import write_table
from slimdown.utils.errors import ConfigError, DataError

_UNKNOWN_MODEL = "tuned=MODEL"  # the logs do not name it as a run does


def main(argv: list[str]) -> int:
    """Judge the logs of two models.

    Args:
        argv: The arguments after `verdict`.

    Returns:
        The exit code.
    """
    parser = arguments.CommandParser("verdict", __doc__, exit_code=3)
    place = "the folder that the tool wrote to, the folder of one model in it, or a file"
    parser.add_argument("base", type=Path, metavar="BASE", help=f"logs of the base model: {place}")
    tuned_help = "logs of the tuned model; you can give several models"
    parser.add_argument("tuned", type=Path, nargs="+", metavar="TUNED", help=tuned_help)
    parser.add_argument(
        "--chain",
        action="store_true",
        help="compare each model with the one before, and the last with BASE; prompts and engine "
        "may differ",
    )
    metric_help = "the metric to judge by: gsm8k=exact_match.strict-match"
    parser.add_list("--metric", "TASK=METRIC", metric_help)
    text = "a field of the questions, such as passage; questions with the same value count once"
    parser.add_list("--cluster", "TASK=FIELD", text)
    parser.add_list("--target", "TASK", "a task that the model was trained for")
    add_gate_options(parser, "no budget is checked")
    parser.add_argument(
        "--max-loss-at",
        nargs=2,
        metavar=("STAGE", "BENCHMARK=SHARE"),
        action="append",
        default=[],
        help="the largest loss of one stage of a chain, for example q4 gsm8k=0.01; you can repeat "
        "this option",
    )
    parser.add_list("--only", "NAME", "judge only this benchmark")
    add_lost_option(parser)
    parser.add_output(junit=(".xml",))
    track_help = "also record the result as a run in MLflow"
    parser.add_argument("--track", action="store_true", help=track_help)
    options = parser.parse(name_budgets(argv))
    refusal = "These logs cannot be judged:"
    if options.max_loss_at and not options.chain:
        parser.error("--max-loss-at is for a stage of a chain; add --chain")
    judge_logs = _judge_stages if options.chain or len(options.tuned) > 1 else _judge
    return arguments.run_command(lambda: judge_logs(options), refusal, error_code=3)


def _read_sides(
    options: argparse.Namespace, has_gate: bool
) -> tuple[dict[Path, Evaluation], str, list[str]]:
    """Read the logs of all models, and take the questions that they have in common.

    A side is one model, named by the place of its logs: BASE or one of TUNED.

    Args:
        options: Those of the command line.
        has_gate: Whether budgets are checked. Then only --only may leave questions out. Otherwise a
            model could pass because some of its answers are missing.

    Returns:
        The evaluations by the place of their logs, the tool that made them, and notes for the user.

    Raises:
        ConfigError: Logs are given twice, come from several tools, or seem to be swapped.
        DataError: Logs cannot be read, or lack questions that a budget needs.
    """
    metrics = _read_by_task("metric", options.metric, "gsm8k=exact_match.strict-match")
    clusters = _read_by_task("cluster", options.cluster, "drop=passage")
    sides = [options.base, *options.tuned]
    notes = list[str]()
    tool = _check_sides(sides)
    evaluations = {
        side: read_logs(side, metrics, options.target, notes.append, clusters) for side in sides
    }
    adapter = evaluations[options.base].adapter
    if adapter and not evaluations[sides[-1]].adapter:
        swapped = (
            f"{options.base} names the adapter {adapter}, and {sides[-1]} names none. Base and "
            "tuned model seem to be swapped: BASE comes first."
        )
        # With budgets, a loss would pass as a gain. A chain may begin with an adapter and end with
        # the merged model.
        if has_gate and not options.chain:
            raise ConfigError(f"{swapped} If this order is right, add --chain")
        notes.append(swapped)
    evaluations_by_name = {str(side): evaluation for side, evaluation in evaluations.items()}
    taken, left_out = take_common(evaluations_by_name, options.only)
    if left_out and has_gate and not options.only:
        names = " ".join(f"--only {name}" for name in taken[str(options.base)].benchmarks)
        raise DataError(
            "\n".join(left_out) + "\nA budget needs all questions of both models. To check it only "
            f"on what both models were asked, add {names}"
        )
    return {side: taken[str(side)] for side in sides}, tool, [*notes, *left_out]


def _check_sides(sides: Sequence[Path]) -> str:
    """Return the tool that made the logs of all models.

    Raises:
        ConfigError: Logs are given twice, or come from several tools.
        DataError: A place holds no logs, or those of several models.
    """
    sides_by_tool = dict[str, Path]()  # for each tool, the first place that holds its logs
    sides_by_files = dict[tuple[str, ...], Path]()
    for side in sides:
        tool, files = find_logs(side)
        real_files = tuple(map(os.path.realpath, files))  # two names may lead to the same files
        if other := sides_by_files.get(real_files):
            raise ConfigError(f"{other} and {side} are the same logs; give the logs of two models")
        sides_by_tool.setdefault(tool, side)
        sides_by_files[real_files] = side
    if len(sides_by_tool) > 1:
        problem = ", ".join(f"{side} holds logs of {tool}" for tool, side in sides_by_tool.items())
        raise ConfigError(f"{problem}; tools score differently, so give logs of one tool")
    return next(iter(sides_by_tool))


def _judge_stages(options: argparse.Namespace) -> int:
    """Judge several models: with --chain each against the one before, otherwise against BASE.

    With --chain, the last model is judged against BASE, too: the gate is about that change.

    Returns:
        The exit code: the outcome of the budgets; 0 if none is checked.

    Raises:
        ConfigError: Options contradict each other, or the logs are not of comparable models.
        DataError: Logs cannot be read, or the models were not asked the same questions.
    """
    rules = read_rules(options)
    is_junit = options.format == "junit"
    has_gate = rules.are_set or is_junit
    if has_gate and not options.chain:
        raise ConfigError(
            "a budget is for one tuned model: give BASE and one TUNED, or add --chain"
        )
    budgets_by_stage = _read_stage_budgets(options.max_loss_at)
    if options.lost or options.track:
        option = "--lost" if options.lost else "--track"
        raise ConfigError(
            f"{option} takes BASE and one TUNED; leave out --chain and the other models"
        )
    evaluations, _, notes = _read_sides(options, has_gate or bool(budgets_by_stage))
    names = drop_shared_beginning(list(map(os.path.abspath, evaluations)), os.sep)
    stages = dict(zip(names, evaluations.values(), strict=True))
    judged = judge_stages(stages, is_chain=options.chain)
    arguments.write_notes(dict.fromkeys(notes))  # each note once
    gate = None
    # Up to two kinds of budgets are checked: those of the change from BASE to the last model
    # (--max-loss and the like), and those of single stages (--max-loss-at). `n_reports` counts the
    # changes that are checked, because the test of each is corrected for all of them.
    n_reports = len(budgets_by_stage) + (1 if has_gate else 0)
    if has_gate:  # only with --chain
        # `reported` ends with the change from BASE to the last model, after the single steps.
        gate = rules.decide(judged.reported[-1].findings, n_reports)
    if budgets_by_stage:  # these checks are added to the gate, or make one of their own
        checks = judged.check_stages(budgets_by_stage, n_reports)
        gate = replace(gate, checks=(*gate.checks, *checks)) if gate else Gate(tuple(checks))
    title = " → ".join(stages) if options.chain else f"{len(options.tuned)} models"
    table = stages_table(judged, title, gate)
    if is_junit and gate:
        arguments.put_text(write_junit(gate, title), options.output)
    else:
        command = "verdict --chain" if options.chain else "verdict"
        arguments.put_table(table, options, lambda: render_stages_page(table, judged, command))
    return int(gate.outcome) if gate else 0


def _read_stage_budgets(texts: Sequence[Sequence[str]]) -> dict[str, dict[str, float]]:
    """Read what each stage may lose: by stage, then by benchmark."""
    texts_by_stage = defaultdict[str, list[str]](list)
    for stage, budget in texts:
        texts_by_stage[stage].append(budget)
    budgets = texts_by_stage.items()
    return {stage: read_budgets(texts, f"--max-loss-at {stage}") for stage, texts in budgets}


def _judge(options: argparse.Namespace) -> int:
    """Judge one tuned model against its base, and return the gate's outcome as the exit code.

    Returns:
        The exit code: the outcome of the budgets; 0 if none is checked.

    Raises:
        ConfigError: Options contradict each other, or the logs are not of comparable models.
        DataError: Logs cannot be read, or the models were not asked the same questions.
    """
    rules = read_rules(options)
    has_gate = rules.are_set or options.format == "junit"
    evaluations, tool, notes = _read_sides(options, has_gate)
    is_lm_eval = tool == "lm_eval"
    base, tuned = evaluations.values()
    try:
        findings = judge(base, tuned)
    except DataError as error:
        if "prompt_hash differs" in str(error):
            error.add_note(
                "if each model was asked as it is served, add --chain, which compares them anyway"
            )
        raise
    notes += _describe_logs(base, tuned, is_lm_eval)
    gate = rules.decide(findings) if has_gate else None
    arguments.write_notes(dict.fromkeys(notes))  # each note once
    has_two_names = bool(base.model and tuned.model) and base.model != tuned.model
    # If the logs do not name two models, the places of the logs tell the models apart.
    names = (base.model, tuned.model) if has_two_names else (options.base, options.tuned[0])
    title = " → ".join(map(str, names))
    if options.format in (None, "table") or options.output:
        # With --all, the details hold these notes already.
        noise = [] if options.all else [*text.describe_noise(findings)]
        show_findings(
            findings, title, gate, text.ADVICE_ON_LOGS, notes=noise, with_details=options.all
        )
    elif gate:
        arguments.write_notes([text.describe_outcome(gate)])
    if options.format:
        arguments.put_report(findings, title, gate, options)
    if options.lost:
        lost_lines = write_lost_questions(
            options.lost,
            findings.pairs,
            base.conditions,
            is_chat=base.conditions.get("apply_chat_template") == "true",
            model_settings=_name_models(base, tuned) if is_lm_eval else [_UNKNOWN_MODEL],
        )
        arguments.write_notes(lost_lines)
    if options.track:
        _track(findings, gate, title, options)
    return int(gate.outcome) if gate else 0


def _describe_logs(base: Evaluation, tuned: Evaluation, is_lm_eval: bool) -> Iterator[str]:
    """Say whether the logs of two models differ in the tool's version, and not in any answer."""
    if base.harness_version != tuned.harness_version:
        versions = f"{base.harness_version} and {tuned.harness_version}"
        tool = "lm_eval " if is_lm_eval else ""
        yield f"The logs were made by {tool}{versions}; tasks, questions and prompts are the same."
    pairs = ((base.benchmarks[name], tuned.benchmarks[name]) for name in base.benchmarks)
    if all(before.samples == after.samples for before, after in pairs):
        cause = ". One reason may be lm_eval's --use_cache, which reuses answers of another model"
        yield f"Both logs are equal, question by question{cause if is_lm_eval else ''}."


def _name_models(base: Evaluation, tuned: Evaluation) -> list[str]:
    """Return the settings of a run that asks the models of lm_eval's logs again."""
    if tuned.adapter:  # it names its base
        return [f"tuned={tuned.adapter}"]
    if not (base.model and tuned.model) or base.model == tuned.model:
        return [_UNKNOWN_MODEL]
    model, _, revision = base.model.partition("@")
    named = [f"model={model}", *([f"model.revision={revision}"] if revision else [])]
    return [*named, f"tuned={tuned.model}"]


def _read_by_task(option: str, texts: list[str], example: str) -> dict[str, str]:
    """Read what an option says about each task."""
    by_task = {task: value for task, _, value in (text.partition("=") for text in texts)}
    if len(by_task) < len(texts) or not all([*by_task, *by_task.values()]):
        raise ConfigError(
            f"--{option} {' '.join(texts)}: give one {option} per task, for example {example}"
        )
    return by_task


def _track(findings: Findings, gate: Gate | None, sides: str, options: argparse.Namespace) -> None:
    from slimdown.tracking.judged_logs import record_judged_logs

    def render_files(run_id: str) -> dict[str, str]:
        table = findings_table(findings, sides, text.describe_findings(findings), gate)
        made = partial(render_page, findings, sides, run_id=run_id, gate=gate)
        return {
            "report.html": made(answers="answers.html"),
            "answers.html": render_answers_page(findings, sides, "report.html", "samples/"),
            "report.md": write_table(table, "markdown"),
        }

    base, tuned = str(options.base), str(options.tuned[0])
    show_saved(record_judged_logs(options.tracking, findings, base, tuned, render_files))
