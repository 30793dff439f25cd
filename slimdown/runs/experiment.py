"""One run from top to bottom: load, measure the base, fine-tune, measure again, judge, record."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slimdown.config.schema import RunConfig
from slimdown.evaluation.evaluator import Evaluator, assist_measuring
from slimdown.evaluation.results import Cost, Evaluation, Work
from slimdown.judging.budgets import decide_by_settings
from slimdown.judging.findings import Findings, judge
from slimdown.judging.holdout import open_part
from slimdown.judging.stopping import stopping_rule
from slimdown.models.adapters import check_base
from slimdown.models.base_model import (
    LoadedModel,
    describe_base_model,
    load_base_model,
    load_base_tokenizer,
)
from slimdown.models.external import open_tuned_model
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
from slimdown.runs.planning import estimate_run
from slimdown.runs.tuned_sources import open_source
from slimdown.tracking.base_evaluations import open_base_cache
from slimdown.tracking.costs import COSTS_FILE, find_rates, write_costs
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.resume import describe_changed_base
from slimdown.tracking.run_files import render_run_files
from slimdown.tracking.run_writer import open_run
from slimdown.tracking.system_metrics import record_system_metrics
from slimdown.training.fine_tuning import fine_tune, prepare_training
from slimdown.training.result import TrainingResult
from slimdown.utils.distributed import broadcast_from_main, process_count

_LONG = 3600.0  # seconds, of which a run warns before it starts


def run_experiment(
    config: RunConfig, info: RunInfo, shared_base: SharedBase | None = None
) -> Findings:
    """Measure what fine-tuning taught a model and what it made it forget.

    Args:
        config: The checked settings.
        info: The run's name and how it came about, for the record.
        shared_base: Keeps the base for runs of this process that follow; default: none follows.

    Returns:
        What changed on each benchmark, as it is shown and recorded.

    Raises:
        SlimdownError: Something that you can mend. Whatever cannot work is refused before the
            base is measured.
    """
    began = time.perf_counter()
    progress = console.RunProgress(5 if config.tuned else 6)
    with progress.show("reading benchmarks and rows", "benchmarks") as on_progress:
        inputs = read_inputs(config, on_progress)  # a mistake leaves no run in the record
    config, outline = inputs.config, inputs.outline
    progress.n_stages += bool(inputs.served)
    console.show_notes(inputs.notes)
    progress.expected = _expect_seconds(inputs)
    shared_base = shared_base or SharedBase()
    with open_run(config, info) as run:
        source = open_source(inputs, run)
        source.begin()
        with progress.show(f"loading {config.model.id}"):
            base = shared_base.load(config, inputs.tokenizer, outline)
        run.log_model(base)
        broadcast_from_main(run.run_id)  # the processes in assist_run join in
        source.check(base, progress)

        evaluator = _build_evaluator(inputs)
        with progress.show("measuring the base", "questions", "base") as on_progress:
            of_base = evaluator.evaluate(base, run.base_cache, on_progress=on_progress)
        console.show_notes(evaluator.notes)
        n_shown = len(evaluator.notes)
        progress.expect_as(of_base, inputs.served)
        open_base = open_part(of_base, config.evaluation.holdout)  # too few questions end it here
        if config.rerun:
            console.show_notes(describe_changed_base(config, info.run_key, open_base))

        tuned = source.make(base, progress)
        base = base.without_weights()  # they are the tuned model's now
        run.log_tuned(tuned, source.training)
        with progress.show("measuring the tuned model", "questions", "tuned") as on_progress:
            stop_when = stopping_rule(config.evaluation.until, of_base)
            of_tuned = evaluator.evaluate(tuned, run.tuned_cache, stop_when, on_progress)
        console.show_notes(evaluator.notes[n_shown:])
        of_served = source.ask_as_served(tuned, evaluator, of_tuned, progress)
        source.release(tuned, shared_base)

        answers = _Answers(of_base, of_tuned, of_served)
        findings, gated = answers.judge_open(inputs, source.training)
        findings, model_files = source.describe(findings, base)
        gate = decide_by_settings(gated)
        files = render_run_files(findings, config, info, run.run_id, gate, run.model_uri)
        costs = list_costs(answers.costs, source.training, began)
        files[COSTS_FILE] = write_costs(config, base.device, costs)
        run.save(findings, files, model_files)
    if info.sweep is None:  # its end has the table of all runs, and the pages the rest
        title = f"{config.model.id} → {config.name or config.tuned or info.name}"
        trains = config.tuned is None
        can_scale = not trains or config.method.facts.scales
        keeps = config.keep.is_active
        advice = advise(run.run_id, gated, can_scale, trains, keeps, gate)
        console.show_findings(findings, title, gate, advice)
        console.show_saved(run, "model" if config.method.facts.trains_weights else "adapter")
    return findings


def _build_evaluator(inputs: RunInputs) -> Evaluator:
    return Evaluator(
        inputs.tasks,
        inputs.config.evaluation,
        share_prefixes=not inputs.learns_prompt,
        counts_memory=True,  # this process and its GPU are our own
        n_processes=process_count(),
    )


def _expect_seconds(inputs: RunInputs) -> dict[str, float]:
    """Return how long each part of a run takes, where runs like it are recorded; warn of hours."""
    config = inputs.config
    about = config.model, config.quantization, inputs.tokenizer, inputs.outline
    described = describe_base_model(*about)
    if not (rates := find_rates(config, described.device)).costs:
        return {}
    expected = estimate_run(inputs, described, rates)
    if (seconds := sum(expected.values())) > _LONG:
        takes = f"This run takes about {format_duration(seconds)}"
        console.show_line(f"{takes}; --plan says what takes it, and how to shorten it.")
    return expected


@dataclass(frozen=True)
class _Answers:
    """What the models of a run answered to all questions."""

    base: Evaluation
    tuned: Evaluation
    served: Evaluation | None  # the tuned model, where its files have it served otherwise

    def judge_open(
        self, inputs: RunInputs, training: TrainingResult | None
    ) -> tuple[Findings, Findings]:
        """Judge by the questions that are not held out.

        Returns:
            The findings that are shown, and those that the gate judges: of what will be served.
        """
        holdout = inputs.config.evaluation.holdout
        base, tuned = open_part(self.base, holdout), open_part(self.tuned, holdout)
        findings = replace(judge(base, tuned, training), not_run=inputs.not_run)
        if self.served is None:
            return findings, findings
        gated = judge(base, open_part(self.served, holdout), same_prompts=False)
        asked_again = {name: self.served.benchmarks[name] for name in inputs.served}
        served = open_part(replace(self.served, benchmarks=asked_again), holdout)
        return replace(findings, served=served), gated

    @property
    def costs(self) -> list[Cost]:
        """What asking has cost."""
        asked = [one for one in (self.base, self.tuned, self.served) if one]
        return [cost for one in asked for cost in one.costs]


def list_costs(
    costs: Sequence[Cost], training: TrainingResult | None, began: float
) -> Iterator[Cost]:
    """List what a run has cost: what was measured, the training, and the rest.

    Args:
        costs: Of the benchmarks.
        training: What the training did, if there was one.
        began: When the run began, by `time.perf_counter`.
    """
    parts = [*costs]
    if training and training.runtime_seconds > 0:
        n_tokens = round(training.tokens_per_second * training.runtime_seconds)
        about = len(training.history), n_tokens, 0, training.runtime_seconds
        parts.append(Cost("", Work.steps, *about))
    rest = time.perf_counter() - began - sum(one.seconds for one in parts)
    yield from parts
    yield Cost("", Work.other, 1, 0, 0, max(0.0, rest))


def measure_base(config: RunConfig) -> None:
    """Measure and record the base of a run, so that runs that start later find its answers.

    Args:
        config: The settings of any run on this base.

    Raises:
        SlimdownError: The base or a benchmark cannot be loaded.
    """
    tasks, _ = load_benchmarks(config)
    tokenizer, train_data = load_tokenizer(config), None
    tasks, _ = leave_out_unaskable(config, tasks, tokenizer)
    if config.dataset and config.may_hold_conversations:
        train_data = read_rows(config, tokenizer)
    evaluation, _ = decide_prompts(config, tasks, tokenizer, train_data)
    base = load_base_model(config.model, config.quantization, tokenizer)
    shares = not config.method.facts.learns_prompt
    evaluator = Evaluator(tasks, evaluation, shares)
    with console.progress_bar("measuring the base", "questions") as on_progress:
        evaluator.evaluate(base, open_base_cache(config, base), on_progress=on_progress)


def assist_run(config: RunConfig) -> None:
    """Help the first process to train and to answer; it does the rest itself.

    Args:
        config: The same settings that the first process has.
    """
    if run_id := broadcast_from_main(""):  # the first process has something to do
        with record_system_metrics(config.tracking, run_id):
            _train_and_answer_along(config)


def _train_and_answer_along(config: RunConfig) -> None:
    outline, tokenizer = check_base(config), load_base_tokenizer(config.model)
    silent: Any = lambda *_: None  # noqa: E731
    if config.tuned:
        base = LoadedModel(outline, tokenizer, config.model.id, "", outline=outline)
        external = open_tuned_model(config, base)
    base = load_base_model(config.model, config.quantization, tokenizer, outline)
    if not config.tuned:
        prepared = prepare_training(base, read_rows(config, tokenizer), config)
    assist_measuring(base)
    if config.tuned:
        tuned = replace(external, base=base).load()
    else:
        tuned, _ = fine_tune(base, prepared, config, Path(), silent, silent)
    assist_measuring(tuned)
