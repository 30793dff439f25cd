"""`slimdown scale RUN`: shrink an adapter's effect until its losses fit your budget.

It trains nothing. Scale 0 is the base model, and scale 1 is the trained LoRA or model. With
--max-loss it goes up from the smallest scale and chooses the last one at which every loss is still
proven to be within its budget. A run with evaluation.holdout is judged on its held-out questions.

Examples:
  slimdown scale 3f2a                                 the changes at scales 0.1, 0.25, ... and 1
  slimdown scale 3f2a --scales 0.1,0.2,0.4 -o scales.html
  slimdown scale 3f2a --max-loss 0.02 --save gentle   the most that loses at most 2 points
  slimdown run tuned=gentle ...                       measure what was saved

Exit code:
  0  the changes at all scales are shown; with --max-loss: a scale fits every budget
  1  even the smallest scale exceeds a budget
  2  no scale is proven to fit the budgets, and the smallest is not proven to exceed one
  3  nothing was measured
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from slimdown.commands import arguments
from slimdown.commands.gate import GateRules, name_budgets, read_rules
from slimdown.comparison.run_records import RunRecord
from slimdown.comparison.scaling import ScaledFindings, choose_scale
from slimdown.config.methods import list_methods
from slimdown.config.schema import RunConfig
from slimdown.judging.budgets import Outcome
from slimdown.judging.findings import Findings, judge
from slimdown.judging.holdout import open_part
from slimdown.models.tuned_base import ADAPTER_CONFIG
from slimdown.report.comparison_page import render_scaling_page, scales_table
from slimdown.report.console import show_line, show_places, show_table
from slimdown.report.findings_report import add_outcome, findings_table
from slimdown.report.text import describe_budgets, summarize_briefly
from slimdown.tracking import finished_runs, run_reader
from slimdown.tracking.derived_models import record_scaled
from slimdown.tracking.held_out import take_held_out
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.run_files import render_model_card
from slimdown.utils.errors import ConfigError, ModelError, TrackingError
from slimdown.utils.files import write_atomically

if TYPE_CHECKING:  # it imports torch
    from slimdown.runs.scaled_runs import ScaledEvaluations

_LARGEST = 2.0


def main(argv: list[str]) -> int:
    """Measure a run's model at several scales of what was trained.

    Args:
        argv: The arguments after `scale`.

    Returns:
        The exit code.
    """
    parser = arguments.CommandParser("scale", __doc__, exit_code=3)
    add = parser.add_argument
    add("run", metavar="RUN", help=arguments.RUN_HELP)
    text = "the scales to measure, separated by commas (default: %(default)s)"
    add("--scales", default="0,0.1,0.25,0.5,0.75,1", metavar="LIST", help=text)
    text = (
        "the largest loss you allow: 0.02 is two points of each retained benchmark, gsm8k=0.02 is "
        "two points of GSM8K (the others keep their budgets), gsm8k=off does not check GSM8K"
    )
    parser.add_list("--max-loss", "[BENCHMARK=]SHARE|off", text)
    parser.set_defaults(max_relative_loss=[], overall=False)  # `read_rules` asks for them, too
    text = "with --max-loss: write the chosen adapter or model to this new or empty folder"
    add("--save", type=Path, metavar="DIR", help=text)
    text = "the folder with the task files of the run; the Python code in them runs"
    add("--include-path", metavar="DIR", help=text)
    parser.add_output()
    options = parser.parse(name_budgets(argv))
    if options.save and not options.max_loss:
        advice = "add --max-loss, such as 0.02"
        parser.error(f"--save writes the scale that --max-loss chooses; {advice}")
    refusal = "This run cannot be scaled:"
    return arguments.run_command(lambda: _scale(options), refusal, error_code=3)


def _scale(options: argparse.Namespace) -> int:
    """Measure the scales, show and record what was found, and return the exit code.

    A measurement can take hours. So everything that may be refused is checked before it. With
    budgets, `_choose` shows the curve together with the scale that it chooses.

    Raises:
        ConfigError: An option is not valid, or does not fit the run.
        DataError: There are too few held-out questions.
        ModelError: The run's model cannot be scaled, or has changed since.
        TrackingError: The run does not exist or is not finished, or the store takes no files.
        OSError: Nothing can be written beside the folder of --save.
    """
    scales = read_scales(options.scales)
    rules = read_rules(options)
    if options.save:
        options.save = options.save.expanduser().absolute()
        arguments.check_new_folder("--save", options.save)
    run = run_reader.find_run(options.tracking, options.run)
    findings = run_reader.check_finished(run)
    config = run_reader.read_config(options.tracking, run)
    _check_scaling(run, config, options)
    recorded = run_reader.read_evaluations(options.tracking, run)
    finished_runs.begin_scaling(options.tracking, run)
    if rules.are_set:
        rules.check_fit(findings)
    if options.save:  # a file that is deleted at once shows whether the folder can be written
        options.save.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=options.save.parent).close()
    with tempfile.TemporaryDirectory() as scratch:
        # `measured_config` is for `measure_scales`, which reads the model from `tuned`. `config` is
        # for the model card that `_choose` writes: without `tuned`, it says how the run trained.
        if config.tuned is None:  # the run trained its model, so that is in the record
            trained = run_reader.download_tuned(options.tracking, run, Path(scratch))
            measured_config = replace(config, tuned=str(trained))
        else:  # the run trained nothing: no rows for a validation loss, and no dataset in the card
            config = replace(config, dataset={})
            measured_config = config
        from slimdown.runs.scaled_runs import measure_scales  # torch

        with arguments.keep_stdout_clean(options):
            origin = run.tags.get(Tag.origin, "")
            measured = measure_scales(measured_config, scales, recorded, origin)
        curve = _judge_scales(measured, findings, run.holdout)
        table = scales_table(curve, _make_title(run))
        files = {"scales.html": render_scaling_page(table, curve)}
        for point in curve:
            files[f"scales/{point.scale!r}.json"] = json.dumps(point.findings.to_dict())
        finished_runs.add_artifacts(options.tracking, run, files)
        if rules.are_set:
            return _choose(options, run, config, measured=measured, curve=curve, rules=rules)
    return arguments.put_table(table, options, lambda: render_scaling_page(table, curve))


def _judge_scales(
    measured: "ScaledEvaluations", findings: Findings, share: float
) -> list[ScaledFindings]:
    """Judge each scale on the questions that are not held out."""
    points = []
    for scale, tuned in measured.tuned.items():
        training, loss = findings.training, measured.validation_losses.get(scale)
        if training and loss is not None:
            training = replace(training, validation_loss_after=loss)
        judged = judge(open_part(measured.base, share), open_part(tuned, share), training)
        points.append(ScaledFindings(scale, judged))
    return points


def _check_scaling(run: RunRecord, config: RunConfig, options: argparse.Namespace) -> None:
    """Refuse a run whose model cannot be scaled, or whose task files the user has not named.

    Raises:
        ConfigError: --include-path does not name the folder of the run's task files.
        ModelError: The weights are on a server, or the model at scale 0 would not be its base.
    """
    if config.address:
        raise ModelError(
            f"run {run.run_id} ({run.name}) asked a server, whose weights are not here; scale the "
            "adapter that it was made from"
        )
    if config.tuned is None and not config.method.facts.scales:
        able = list_methods(lambda facts: facts.scales)
        raise ModelError(
            f"run {run.run_id} ({run.name}) was trained with method={config.method.name}, "
            f"which at scale 0 is not its base; method={able} can be scaled"
        )
    # A shared record could otherwise run foreign code; who types the folder has chosen it.
    folder = config.evaluation.include_path
    if folder == options.include_path:
        return
    if not folder:
        raise ConfigError("the run has no task files of its own; leave out --include-path")
    raise ConfigError(
        f"the run's task files lie in {folder}, and their Python code would run; read it, and type "
        f"--include-path {folder}"
    )


def _choose(
    options: argparse.Namespace,
    run: RunRecord,
    config: RunConfig,
    *,
    measured: "ScaledEvaluations",
    curve: list[ScaledFindings],
    rules: GateRules,
) -> int:
    """Choose a scale whose losses are within the budgets, show it, and write its model to --save.

    If no scale is proven to fit, the smallest one is shown, and nothing is written.

    Args:
        options: Those of the command line.
        run: The run whose model was scaled.
        config: Its settings, for the model card.
        measured: The answers at each scale; it can also write the model at a scale.
        curve: What changed at each scale, on the questions that are not held out.
        rules: The budgets.

    Returns:
        The exit code: the outcome of the chosen scale's budgets.
    """
    points = curve
    notes = list[str]()
    if run.holdout:  # then the table shows the other questions, and the held-out ones decide
        points, notes = _judge_held_out(options, run, measured)
    chosen = choose_scale(points, rules.budgets, rules.off)
    scale, findings = chosen.point.scale, chosen.point.findings
    gate = chosen.gate
    is_within = gate.outcome is Outcome.within
    heading = f"Scale {scale:g}{' on the held-out questions' if run.holdout else ''}"
    if not is_within:
        notes.append(f"{heading} is the smallest, and not proven to fit the budgets.")
    if options.format:  # the file has no second table with the budgets, as the console has below
        notes += [f"{heading}: {line}" for line in describe_budgets(gate)]
    table = scales_table(curve, _make_title(run), scale if is_within else None)
    table = add_outcome(replace(table, notes=(*table.notes, *notes)), gate)
    page = render_scaling_page(table, curve)
    # This replaces the page that `_scale` wrote before the outcome was known.
    finished_runs.add_artifacts(options.tracking, run, {"scales.html": page})
    arguments.put_table(table, options, lambda: page)
    with arguments.keep_stdout_clean(options):
        checked = findings_table(findings, heading, gate=gate)
        show_table(replace(checked, outcome="", legend=""))
        for line in summarize_briefly(findings, gate):
            show_line(line)
        if options.save and not is_within:
            show_line(f"{options.save} was not written: no scale is proven to fit the budgets")
        elif options.save:
            _save(options, run, config, measured=measured, chosen=chosen.point)
    return int(gate.outcome)


def _save(
    options: argparse.Namespace,
    run: RunRecord,
    config: RunConfig,
    *,
    measured: "ScaledEvaluations",
    chosen: ScaledFindings,
) -> None:
    """Write the model of the chosen scale with its card to --save, and note that in the record.

    Args:
        options: Those of the command line, with `save` and `tracking`.
        run: The run whose model was scaled.
        config: Its settings, for the model card.
        measured: Can write the model at a scale.
        chosen: The scale, and what changed there.

    Raises:
        ConfigError: Something is in the folder by now.
        SlimdownError: The disk is full.
    """
    with arguments.make_folder(options.tracking, "--save", options.save) as draft:
        measured.save(chosen.scale, draft)
        card = render_model_card(
            chosen.findings,
            config,
            measured.base_model,
            is_adapter=(draft / ADAPTER_CONFIG).is_file(),
            note=f"The effect of the training is scaled by {chosen.scale:g}.",
        )
        write_atomically(draft / "README.md", card)
    show_places({"model": str(options.save)})
    try:
        record_scaled(options.tracking, run, chosen.scale, options.save, chosen.findings)
    except TrackingError as error:
        arguments.write_notes([f"The model could not be written to the record: {error}"])


def _judge_held_out(
    options: argparse.Namespace, run: RunRecord, measured: "ScaledEvaluations"
) -> tuple[list[ScaledFindings], list[str]]:
    """Judge all scales on the questions that the run held out.

    The record counts how many models these questions have judged, because each may pass by chance.
    All scales count as one model, since `choose_scale` tests them in one fixed sequence.

    Returns:
        The findings at each scale, and a note if the questions have judged several models.

    Raises:
        DataError: There are too few held-out questions.
    """
    points = list[ScaledFindings]()
    notes = list[str]()
    label = "+".join(f"{scale:g}" for scale in measured.tuned)  # a label is counted once
    for scale, tuned in measured.tuned.items():
        held_out = take_held_out(options.tracking, run, (measured.base, tuned), run.holdout, label)
        points.append(ScaledFindings(scale, judge(held_out.base, held_out.tuned)))
        notes = held_out.explain_looks()  # the same for all scales, which share a label
    return points, notes


def _make_title(run: RunRecord) -> str:
    return f"{run.name} ({run.run_id[:8]}) by its scale"


def read_scales(text: str) -> list[float]:
    """Return the scales above 0 of a list such as 0,0.5,1, sorted. Scale 0 is the base itself.

    Raises:
        ConfigError: One is no number from 0 to 2, or none is above 0.

    >>> read_scales("1,0,0.5,0.5")
    [0.5, 1.0]
    """
    try:
        scales = sorted({float(part) for part in text.split(",")})
    except ValueError:
        scales = []
    are_in_range = all(0 <= scale <= _LARGEST for scale in scales)  # false for nan, too
    if not are_in_range or not any(scales):  # no number was read, or 0 alone
        raise ConfigError(f"--scales {text}: give numbers from 0 to {_LARGEST:g}, such as 0.25,0.5")
    return [scale for scale in scales if scale]
