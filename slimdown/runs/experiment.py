"""One run from top to bottom: load, measure the base, fine-tune, measure again, judge, record."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slimdown.config.schema import RunConfig
from slimdown.evaluation.evaluator import Evaluator, assist_measuring
from slimdown.evaluation.results import Cost, Evaluation, Work
from slimdown.judging.budgets import Gate, decide_by_settings
from slimdown.judging.findings import Findings, judge
from slimdown.judging.holdout import open_part
from slimdown.judging.stopping import stopping_rule
from slimdown.models.adapters import check_base
from slimdown.models.base_model import LoadedModel, load_base_model, load_base_tokenizer
from slimdown.models.external import open_tuned_model
from slimdown.models.server import find_answering_server
from slimdown.models.shared_base import SharedBase
from slimdown.report import console
from slimdown.report.formatting import format_duration
from slimdown.report.text import advise
from slimdown.runs.inputs import (
    RunInputs,
    decide_prompts,
    leave_out_unaskable,
    load_benchmarks,
    load_tokenizer,
    read_inputs,
    read_rows,
)
from slimdown.runs.planning import describe_base, estimate_run
from slimdown.runs.tuned_sources import open_source
from slimdown.tracking.base_evaluations import open_base_cache
from slimdown.tracking.costs import COSTS_FILE, find_rates, write_costs
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.resume import describe_changed_base
from slimdown.tracking.run_files import render_run_files
from slimdown.tracking.run_writer import TrackedRun, open_run
from slimdown.tracking.system_metrics import record_system_metrics
from slimdown.training.fine_tuning import fine_tune, prepare_training
from slimdown.training.result import TrainingResult
from slimdown.utils.distributed import broadcast_from_main, process_count

_LONG = 3600.0  # seconds; a run that takes longer says so before it starts


def run_experiment(
    config: RunConfig, info: RunInfo, shared_base: SharedBase | None = None
) -> Findings:
    """Measure what fine-tuning taught a model and what it made it forget.

    Args:
        config: The checked settings.
        info: The run's name and how it came about, for the record.
        shared_base: Keeps the base for later runs of this process. None: no run follows.

    Returns:
        What changed on each benchmark, as it is shown and recorded: by the questions that are not
        held out, with the tuned model asked in the same way as the base.

    Raises:
        SlimdownError: Something that you can mend. Whatever cannot work is refused before the
            base is measured.
    """
    began = time.perf_counter()
    progress = console.RunProgress(_count_stages(config))
    with progress.show("reading benchmarks and rows", "benchmarks") as on_progress:
        inputs = read_inputs(config, on_progress)  # a mistake raises before a run is opened
    config = inputs.config  # from here on with nothing left to choose
    progress.n_stages += 1 if inputs.served else 0  # the tuned model is asked once more
    console.show_notes(inputs.notes)
    progress.expected = _expect_seconds(inputs)
    shared_base = shared_base or SharedBase()
    with open_run(config, info) as run:
        source = open_source(inputs, run, progress)
        source.begin()
        with progress.show(f"loading {config.model.id}"):
            base = shared_base.load(config, inputs.tokenizer, inputs.outline)
        run.log_model(base)
        broadcast_from_main(run.run_id)  # now the processes in `assist_run` go on
        source.check(base)

        evaluator = _make_evaluator(inputs)
        with progress.show("measuring the base", "questions", "base") as on_progress:
            base_evaluation = evaluator.evaluate(base, run.base_cache, on_progress=on_progress)
        console.show_notes(evaluator.notes)
        n_notes_shown = len(evaluator.notes)
        progress.expect_as(base_evaluation, inputs.served)
        # The base's answers to the questions that are not held out. If there are too few questions
        # to hold some out, this raises, before the run trains.
        open_base = open_part(base_evaluation, config.evaluation.holdout)
        if config.rerun:  # a finished run with these settings may have measured the base, too
            console.show_notes(describe_changed_base(config, info.run_key, open_base))

        tuned = source.make(base)
        base = base.without_weights()  # the tuned model has them now
        run.log_tuned(tuned, source.training)
        with progress.show("measuring the tuned model", "questions", "tuned") as on_progress:
            stop_when = stopping_rule(config.evaluation.until, base_evaluation)
            tuned_evaluation = evaluator.evaluate(tuned, run.tuned_cache, stop_when, on_progress)
        console.show_notes(evaluator.notes[n_notes_shown:])
        served_evaluation = source.ask_as_served(tuned, evaluator, tuned_evaluation)
        source.release(tuned, shared_base)

        # `findings` are shown: both models asked alike. The budgets are decided by the others, for
        # which the tuned model was asked as it will be served.
        findings, gated_findings = _judge_open(
            inputs, source.training, open_base, tuned_evaluation, served_evaluation
        )
        findings, model_files = source.describe(findings, base)
        gate = decide_by_settings(gated_findings)
        files = render_run_files(findings, config, info, run.run_id, gate, model_uri=run.model_uri)
        evaluations = [base_evaluation, tuned_evaluation, served_evaluation]
        costs = list_costs(evaluations, source.training, began)
        files[COSTS_FILE] = write_costs(config, base.device, costs)
        run.save(findings, files, model_files)
    if info.sweep is None:  # a sweep shows all of its runs at its end
        title = f"{config.model.id} → {config.name or config.tuned or info.name}"
        _show_end(run, config, findings, gated_findings, title=title, gate=gate)
    return findings


def _count_stages(config: RunConfig) -> int:
    """Count the stages of a run that the screen numbers, such as [2/6].

    If the tuned model is asked once more as it is served, there is one more. That is known only
    after the first stage.
    """
    n_stages = 4  # reading, loading the base, measuring it, measuring the tuned model
    if config.address:  # a server has the tuned model: nothing is loaded or trained for it
        return n_stages
    return n_stages + (1 if config.tuned else 2)  # loading it; or preparing a training, training


def _make_evaluator(inputs: RunInputs) -> Evaluator:
    """Make the evaluator, which shares the questions among all processes of this run."""
    return Evaluator(
        inputs.tasks,
        inputs.config.evaluation,
        share_prefixes=not inputs.learns_prompt,
        counts_memory=True,  # this process and its GPU are our own
        n_processes=process_count(),
    )


def _show_end(
    run: TrackedRun,
    config: RunConfig,
    findings: Findings,
    gated_findings: Findings,
    *,
    title: str,
    gate: Gate | None,
) -> None:
    """Show what a run found, what to do next, and where its files are.

    Args:
        run: The run in the record.
        config: Its settings.
        findings: The findings that are shown.
        gated_findings: The findings that decide about budgets, see `_judge_open`.
        title: What stands above the findings.
        gate: The outcome of the budgets; None where the settings name none.
    """
    trains = config.tuned is None
    advice = advise(
        run.run_id,
        gated_findings,
        # The weights must be here. Whether an adapter made elsewhere scales, `scale` finds out.
        can_scale=not config.address and (not trains or config.method.facts.scales),
        trains=trains,
        keeps=config.keep.is_active,
        gate=gate,
    )
    console.show_findings(findings, title, gate, advice)
    console.show_saved(run, "model" if config.method.facts.trains_weights else "adapter")


def _expect_seconds(inputs: RunInputs) -> dict[str, float]:
    """Return how many seconds each part of a run takes, and warn if the run takes over an hour.

    Returns:
        Seconds of `base`, `train`, `tuned` and `served`, nan where a part's speed is not known.
        Empty if no comparable run is in the record.
    """
    base = describe_base(inputs)
    rates = find_rates(inputs.config, base.device)
    if not rates.costs:  # no run like it is recorded
        return {}
    expected = estimate_run(inputs, base, rates)
    seconds = sum(expected.values())  # nan if a part is not known: then no warning
    if seconds > _LONG:
        takes = f"This run takes about {format_duration(seconds)}"
        console.show_line(f"{takes}; --plan says what takes it, and how to shorten it.")
    return expected


def _judge_open(
    inputs: RunInputs,
    training: TrainingResult | None,
    open_base: Evaluation,
    tuned_evaluation: Evaluation,
    served_evaluation: Evaluation | None,
) -> tuple[Findings, Findings]:
    """Judge by the questions that are not held out.

    Args:
        inputs: What the run read.
        training: What the training did; None where nothing was trained.
        open_base: The base's answers to the questions that are not held out.
        tuned_evaluation: The tuned model's answers to all questions, asked as the base is.
        served_evaluation: Its answers to all questions, asked as it will be served; None where
            that is as the base is asked.

    Returns:
        The findings that are shown: of the tuned model, asked as the base is. And those that decide
        about budgets: of the tuned model, asked as it will be served.
    """
    holdout = inputs.config.evaluation.holdout
    findings = judge(open_base, open_part(tuned_evaluation, holdout), training)
    findings = replace(findings, not_run=inputs.not_run)
    if served_evaluation is None:
        return findings, findings
    open_served = open_part(served_evaluation, holdout)
    # Its own chat template or BOS may change the prompts, so they need not equal the base's.
    # Budgets and advice depend on scores alone, so these findings hold nothing else.
    gated_findings = judge(open_base, open_served, same_prompts=False)
    # The page compares only these benchmarks: all others have the same answers as before.
    asked_again = {name: open_served.benchmarks[name] for name in inputs.served}
    findings = replace(findings, served=replace(open_served, benchmarks=asked_again))
    return findings, gated_findings


def list_costs(
    evaluations: Sequence[Evaluation | None], training: TrainingResult | None, began: float
) -> Iterator[Cost]:
    """List what a run has cost: what was measured, the training, and the rest.

    Args:
        evaluations: Of the models; None for one that the run does not have.
        training: What the training did, if there was one.
        began: When the run began, by `time.perf_counter`.

    Yields:
        A cost for each benchmark of a model that was asked anew, one for the training, and last one
        for the rest: loading, trying, validating, recording.
    """
    parts = [cost for evaluation in evaluations if evaluation for cost in evaluation.costs]
    if training and training.runtime_seconds > 0:
        seconds = training.runtime_seconds
        n_tokens = round(training.tokens_per_second * seconds)
        # After a resume, the seconds and `n_tokens` are those of this process alone, but `history`
        # and `training.tokens` hold the steps before the checkpoint, too.
        share = n_tokens / training.tokens if training.tokens else 1.0
        n_steps = max(1, round(len(training.history) * share))
        parts.append(Cost("", Work.steps, n_steps, n_tokens, new_tokens=0, seconds=seconds))
    rest = time.perf_counter() - began - sum(cost.seconds for cost in parts)
    yield from parts
    yield Cost("", Work.other, n=1, prompt_tokens=0, new_tokens=0, seconds=max(0.0, rest))


def measure_base(config: RunConfig) -> None:
    """Measure and record the base of a run, so that runs that start later find its answers.

    Args:
        config: The settings of any run on this base.

    Raises:
        SlimdownError: The base or a benchmark cannot be loaded.
    """
    tasks, _ = load_benchmarks(config)  # each run says itself which benchmarks it lacks, and why
    server = find_answering_server(config) if config.address else None
    tokenizer = load_tokenizer(config, server)
    tasks, _ = leave_out_unaskable(config, tasks, tokenizer, server)
    # Rows that are conversations may decide how questions are asked.
    needs_rows = config.dataset and config.may_hold_conversations
    train_data = read_rows(config, tokenizer) if needs_rows else None
    evaluation, _ = decide_prompts(config, tasks, tokenizer, train_data)
    base = load_base_model(config.model, config.quantization, tokenizer)
    evaluator = Evaluator(tasks, evaluation, share_prefixes=not config.method.facts.learns_prompt)
    with console.progress_bar("measuring the base", "questions") as on_progress:
        evaluator.evaluate(base, open_base_cache(config, base), on_progress=on_progress)


def assist_run(config: RunConfig) -> None:
    """Help the first process to train and to answer; it does the rest itself.

    This waits until the first process has loaded the base in `run_experiment`, or until it has
    found that an equal run is finished.

    Args:
        config: The same settings that the first process has.
    """
    if run_id := broadcast_from_main(""):  # the first process has something to do
        with record_system_metrics(config.tracking, run_id):
            _train_and_answer_along(config)


def _train_and_answer_along(config: RunConfig) -> None:
    """Take the same steps as the first process in `run_experiment`, without record or screen.

    The processes meet in these steps, so their order must be that of the first process.
    """
    outline = check_base(config)
    tokenizer = load_base_tokenizer(config.model)
    silent: Any = lambda *_: None  # noqa: E731
    if config.tuned:
        unloaded = LoadedModel.without_loading(outline, tokenizer, config.model.id)
        external = open_tuned_model(config, unloaded)  # checks files before weights are loaded
        base = load_base_model(config.model, config.quantization, tokenizer, outline)
        assist_measuring(base)
        tuned = replace(external, base=base).load()
    else:
        base = load_base_model(config.model, config.quantization, tokenizer, outline)
        prepared = prepare_training(base, read_rows(config, tokenizer), config)
        assist_measuring(base)
        # All processes take the folder and the forward passes of the first one.
        tuned, _ = fine_tune(base, prepared, config, Path(), silent, on_progress=silent)
    assist_measuring(tuned)
