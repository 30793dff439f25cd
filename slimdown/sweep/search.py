"""A search: Optuna proposes values, a launcher runs them; the budget of forgetting constrains it.

Optuna is an extra. The result of a trial is read from its run in the record.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import optuna
from hydra.core.override_parser.types import Transformer
from optuna.trial import Trial, TrialState

from slimdown.comparison.run_comparison import compare_runs
from slimdown.comparison.run_records import RunRecord
from slimdown.comparison.trials import TrialOutcome, summarize_trial
from slimdown.config.fields import find_setting
from slimdown.config.schema import RunConfig
from slimdown.config.search_config import DimensionConfig
from slimdown.judging.budgets import Gate, check_budgets
from slimdown.judging.findings import judge
from slimdown.report import console
from slimdown.report.comparison_page import render_comparison_page, search_table
from slimdown.report.text import describe_budgets, describe_outcome
from slimdown.sweep.command_line import CommandLine, CommandPlan, ComposedRun, compose_runs
from slimdown.sweep.jobs import JobOutcome, JobState
from slimdown.tracking.held_out import take_held_out
from slimdown.tracking.resume import run_key
from slimdown.tracking.run_reader import find_run, read_evaluations
from slimdown.tracking.store import local_dir
from slimdown.utils.errors import ConfigError
from slimdown.utils.files import write_atomically
from slimdown.utils.hashing import hash_json

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Search:
    """The trials of one search.

    The values of each trial lie in a file beside a local record. A repeated command makes the same
    trials in the same order, and takes the finished ones from the record.
    """

    def __init__(self, line: CommandLine, plan: CommandPlan, at_once: int = 1) -> None:
        """Begin a search, or continue the one that exists.

        Args:
            line: The command line.
            plan: One run, which stands for all trials, and what is searched.
            at_once: How many trials to propose together.
        """
        [run] = plan.runs
        self.config, self.space = run.config, plan.space
        self._line, self._at_once = line, at_once
        self._settings = settings = run.config.search
        # Without a name that the user has set, a search is known by all that decides its trials.
        sampling: list[Any] = [settings.max_loss, settings.n_startup_trials, settings.seed]
        space = {key: asdict(dimension) for key, dimension in plan.space.items()}
        digest = hash_json([*sampling, space, run_key(run.config)])[:8]
        self.name = settings.study or f"{run.config.tracking.experiment}-{digest}"
        self.study = optuna.create_study(direction="maximize")
        # A search of this name in another space has another file: its values may lie outside.
        file_name = f"{hash_json([self.name, space])}.json"
        self._file = local_dir(self.config.tracking) / "searches" / file_name
        self._values_by_trial: list[dict[str, Any]] = []  # by dotted key, in the order of trials
        # Without the file, or where it is damaged, values are proposed anew.
        with suppress(FileNotFoundError, ValueError, TypeError, AttributeError):
            recorded = json.loads(self._file.read_text())
            if all(values.keys() == space.keys() for values in recorded):
                self._values_by_trial = recorded
        for values in self._values_by_trial:
            self.study.enqueue_trial(values)  # the first trials then get these values
        self._proposed: list[Trial] = []  # the trials of the last batch that are not refused
        self._runs: list[RunRecord] = []  # those of all trials with a result
        self._results: dict[str, TrialOutcome] = {}  # by run id
        self._refused: dict[int, str] = {}  # the reason, by number of the trial

    def propose_batches(self) -> Iterator[list[ComposedRun]]:
        """Yield trials to run together; call `keep_outcomes` before the next batch.

        A trial whose settings do not fit together is refused, and counts as one.
        """
        n_trials = self._settings.n_trials
        for first in range(0, n_trials, self._at_once):
            trials = [self.study.ask() for _ in range(min(self._at_once, n_trials - first))]
            runs = {trial.number: self._compose(trial) for trial in trials}
            write_atomically(self._file, json.dumps(self._values_by_trial))
            self._proposed = [trial for trial in trials if runs[trial.number]]
            if batch := [run for run in runs.values() if run]:
                yield batch

    def _compose(self, trial: Trial) -> ComposedRun | None:
        """Propose the values of a trial, and compose its run with them.

        An earlier command may have proposed the values of this trial. Then the study proposes them
        again, because `__init__` has put them into its queue. Otherwise the sampler proposes new
        values, which are added to `_values_by_trial`; the caller writes them to the search's file.

        Returns:
            The run; or None if the values do not fit together. Then the trial counts as refused,
            which the user and the study are told.
        """
        # The sampler proposes values for a trial without values in the study's queue. Each trial
        # gets a sampler with its own seed, so a repeated command proposes the same new values. What
        # one sampler for all trials proposes would depend on how many trials this command has
        # proposed, and how many earlier commands had.
        seed = int(hash_json([self._settings.seed, trial.number])[:8], 16)
        n_startup = self._settings.n_startup_trials
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=n_startup, seed=seed)
        proposed = [f"{key}={suggest_value(trial, key, self.space[key])}" for key in self.space]
        if trial.number == len(self._values_by_trial):  # no earlier command proposed this trial
            self._values_by_trial.append(trial.params)
        overrides = [*self._line.overrides, *proposed, f"search.trial={trial.number}"]
        try:
            return compose_runs(replace(self._line, overrides=overrides)).runs[0]
        except ConfigError as error:  # the values fit alone, but not together
            reason = " ".join(str(error).split())
            self._refused[trial.number] = reason
            self.study.tell(trial, state=TrialState.FAIL)
            console.show_line(f"trial {trial.number} is refused ({', '.join(proposed)}): {reason}")
            return None

    def keep_outcomes(self, outcomes: Sequence[JobOutcome]) -> None:
        """Tell the study what the trials of the last batch learned, and by how much they forgot.

        Args:
            outcomes: The outcome of each job of the batch, in its order. The study learns nothing
                of jobs that failed.
        """
        for trial, outcome in zip(self._proposed, outcomes, strict=True):
            if outcome.state not in (JobState.finished, JobState.skipped):
                continue
            run = find_run(self.config.tracking, outcome.run_id)
            if run.findings is None:  # its findings cannot be read
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            result = summarize_trial(run.findings, self._settings.max_loss)
            self._runs.append(run)
            self._results[run.run_id] = result
            if result.unmeasured:  # nothing can be said about the loss on a retained benchmark
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            for benchmark, excess in result.excess.items():
                trial.set_constraint(benchmark, excess)  # above 0 the trial breaks the budget
            self.study.tell(trial, result.learned)

    def show(self) -> dict[str, str]:
        """Print the table of all trials, the best one first, and what was found about that one.

        Trials within the budget come first, and among them the one that learned most. If the best
        one is within the budget, its losses are judged again on the held-out questions.

        Returns:
            The HTML page of the trials under its file name; empty if no trial has a result.

        Raises:
            ConfigError: Every trial is refused.
        """
        runs = self._runs
        if len(self._refused) == self._settings.n_trials:
            reasons = "\n".join(dict.fromkeys(self._refused.values()))
            raise ConfigError(f"every trial of the search is refused; change its space\n{reasons}")
        if not runs:
            return {}
        runs.sort(key=lambda run: self._results[run.run_id].order)
        comparison = compare_runs(runs, group_seeds=False)
        table = search_table(comparison, self._results, self.name)
        if self._results[runs[0].run_id].is_within:
            notes = self._describe_best(runs[0])
        else:
            advice = "Raise the budget, or widen the ranges."
            notes = [f"No trial is within the budget as measured. {advice}"]
        notes += [f"Trial {n} was refused: {reason}." for n, reason in self._refused.items()]
        table = replace(table, notes=(*notes, *table.notes))
        console.show_table(table)
        return {"search.html": render_comparison_page(table, comparison)}

    def _describe_best(self, best: RunRecord) -> list[str]:
        """Name the trial to take, and check its losses on the questions that are held out."""
        reason = "which learned most of the trials within the budget; its adapter is in"
        lines = [f"Chosen: {best.name} ({best.run_id[:8]}), {reason} {best.artifact_uri}."]
        if best.holdout:
            evaluations = read_evaluations(self.config.tracking, best)
            held_out = take_held_out(self.config.tracking, best, evaluations, best.holdout)
            budget = self._settings.max_loss
            budgets = {} if budget is None else {"": budget}  # "": all benchmarks
            gate = Gate(tuple(check_budgets(judge(held_out.base, held_out.tuned), budgets)))
            lines.append(f"On the held-out questions: {describe_outcome(gate)}")
            lines += describe_budgets(gate)
        return lines


def suggest_value(trial: Trial, key: str, dimension: DimensionConfig) -> str:
    """Let a trial propose a value; return it as a command line has it."""
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.choices:
        texts = [Transformer.str(value) for value in dimension.choices]
        return str(trial.suggest_categorical(key, texts))
    if setting := find_setting(key, RunConfig):
        is_whole = "float" not in str(setting)
    else:  # an option of TRL or PEFT
        is_whole = isinstance(low, int) and isinstance(high, int)
    if is_whole:
        return str(trial.suggest_int(key, low, high, log=log))
    value = trial.suggest_float(key, low, high, log=log)
    return str(min(max(float(f"{value:.3g}"), low), high))  # more digits make no difference
