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
from slimdown.comparison.trials import summarize_trial
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
            plan: One of its trials, and what is searched.
            at_once: How many jobs the launcher runs at once.
        """
        [run] = plan.runs
        self.config, self.space, self._line = run.config, plan.space, line
        self._settings = settings = run.config.search
        self._at_once = at_once
        identity: list[Any] = [settings.max_loss, settings.n_startup_trials, settings.seed]
        space = {key: asdict(one) for key, one in plan.space.items()}
        digest = hash_json([*identity, space, run_key(run.config)])[:8]
        self.name = settings.study or f"{run.config.tracking.experiment}-{digest}"
        self.study = optuna.create_study(direction="maximize")
        # If the space of a name has changed, its values may lie outside: it begins anew.
        file = f"{hash_json([self.name, space])}.json"
        self._file = local_dir(self.config.tracking) / "searches" / file
        self._values: list[dict[str, Any]] = []  # one mapping for each trial
        # Without the file, or where it is damaged, values are proposed anew.
        with suppress(FileNotFoundError, ValueError, TypeError, AttributeError):
            values = json.loads(self._file.read_text())
            self._values = values if all(one.keys() == space.keys() for one in values) else []
        for values in self._values:
            self.study.enqueue_trial(values)
        self._proposed: list[Trial] = []
        self._runs: list[RunRecord] = []
        self._refused: dict[int, str] = {}  # why, by number

    def propose_batches(self) -> Iterator[list[ComposedRun]]:
        """Yield trials to run together; call `keep_outcomes` before the next batch.

        A trial whose settings do not fit together is refused, and counts as one.
        """
        n_trials = self._settings.n_trials
        for first in range(0, n_trials, self._at_once):
            trials = [self.study.ask() for _ in range(min(self._at_once, n_trials - first))]
            runs = {trial.number: self._compose(trial) for trial in trials}
            write_atomically(self._file, json.dumps(self._values))
            self._proposed = [trial for trial in trials if runs[trial.number]]
            if batch := [run for run in runs.values() if run]:
                yield batch

    def _compose(self, trial: Trial) -> ComposedRun | None:
        # A seed for each trial: a repeated command proposes the same, whatever it found finished.
        seed = int(hash_json([self._settings.seed, trial.number])[:8], 16)
        n_startup = self._settings.n_startup_trials
        self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=n_startup, seed=seed)
        values = {key: suggest_value(trial, key, one) for key, one in self.space.items()}
        if trial.number == len(self._values):
            self._values.append(trial.params)
        own = [f"{key}={value}" for key, value in values.items()]
        own.append(f"search.trial={trial.number}")
        overrides = [*self._line.overrides, *own]
        try:
            return compose_runs(replace(self._line, overrides=overrides)).runs[0]
        except ConfigError as error:  # each value was checked alone
            reason = " ".join(str(error).split())
            self._refused[trial.number] = reason
            self.study.tell(trial, state=TrialState.FAIL)
            console.show_line(f"trial {trial.number} is refused ({', '.join(own[:-1])}): {reason}")
            return None

    def keep_outcomes(self, outcomes: Sequence[JobOutcome]) -> None:
        """Tell the study the results of the last batch; failed trials are left out."""
        for trial, outcome in zip(self._proposed, outcomes, strict=True):
            if outcome.state in (JobState.finished, JobState.skipped):
                run = find_run(self.config.tracking, outcome.run_id)
                if run.findings is None:  # it is finished, and cannot be read
                    self.study.tell(trial, state=TrialState.FAIL)
                    continue
                self._runs.append(run)
                result = summarize_trial(run.findings, self._settings.max_loss)
                if result.unmeasured:  # neither a loss nor none
                    self.study.tell(trial, state=TrialState.FAIL)
                    continue
                for name, excess in result.excess.items():
                    trial.set_constraint(name, excess)
                self.study.tell(trial, result.learned)

    def show(self) -> dict[str, str]:
        """Print all trials and the one to take; returns their page, by its name.

        The best within the budget stands first. Its losses are checked on the held-out questions.

        Raises:
            ConfigError: Every trial is refused.
        """
        runs, refused = self._runs, self._refused
        if len(refused) == self._settings.n_trials:
            reasons = "\n".join(dict.fromkeys(refused.values()))
            raise ConfigError(f"every trial of the search is refused; change its space\n{reasons}")
        if not runs:
            return {}
        budget = self._settings.max_loss
        outcomes = {r.run_id: summarize_trial(r.findings, budget) for r in runs if r.findings}
        runs.sort(key=lambda run: outcomes[run.run_id].order)
        comparison = compare_runs(runs, group_seeds=False)
        table = search_table(comparison, outcomes, self.name)
        best, budgets = runs[0], {} if budget is None else {"": budget}
        if not outcomes[best.run_id].is_within:
            chosen = [
                "No trial is within the budget as measured. Raise the budget, or widen the ranges."
            ]
        else:
            reason = "which learned most of the trials within the budget; its adapter is in"
            chosen = [f"Chosen: {best.name} ({best.run_id[:8]}), {reason} {best.artifact_uri}."]
            if best.holdout:
                evaluations = read_evaluations(self.config.tracking, best)
                half = take_held_out(self.config.tracking, best, evaluations, best.holdout)
                gate = Gate(tuple(check_budgets(judge(half.base, half.tuned), budgets)))
                line = describe_outcome(gate)
                chosen.append(f"On the held-out questions: {line}")
                chosen += describe_budgets(gate)
        chosen += [f"Trial {number} was refused: {reason}." for number, reason in refused.items()]
        table = replace(table, notes=(*chosen, *table.notes))
        console.show_table(table)
        return {"search.html": render_comparison_page(table, comparison)}


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
    return str(min(max(float(f"{value:.3g}"), low), high))  # further digits decide nothing
