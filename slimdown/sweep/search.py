"""A search: Optuna proposes values, a launcher runs them; the budget of forgetting constrains it.

Optuna is an extra. Its study is a file beside a local record and holds no results that are not in
the record: what a trial came to is read from its run.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import optuna
from hydra.core.override_parser.types import Transformer
from optuna.trial import Trial, TrialState

from slimdown.comparison.run_comparison import compare_runs
from slimdown.comparison.trials import summarize_trial
from slimdown.config.fields import find_setting
from slimdown.config.schema import RunConfig
from slimdown.config.search_config import DimensionConfig
from slimdown.judging.budgets import check_budgets
from slimdown.judging.findings import judge_held_out
from slimdown.report import console
from slimdown.report.comparison_page import render_comparison_page, search_table
from slimdown.sweep.command_line import CommandLine, CommandPlan, ComposedRun, compose_runs
from slimdown.sweep.jobs import JobOutcome, JobState
from slimdown.tracking.resume import run_key
from slimdown.tracking.run_reader import find_run, read_evaluations
from slimdown.tracking.store import local_dir, lock
from slimdown.utils.errors import ConfigError, TrackingError, describe_error
from slimdown.utils.hashing import hash_json

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Search:
    """The trials of one study, those of earlier commands too."""

    def __init__(self, line: CommandLine, plan: CommandPlan, at_once: int = 1) -> None:
        """Make the study, or open the one that is there.

        Args:
            line: The command line.
            plan: One of its trials, and what is searched.
            at_once: How many jobs the launcher runs at once.

        Raises:
            TrackingError: The study's file cannot be used.
        """
        [run] = plan.runs
        self.config, self.space, self._line = run.config, plan.space, line
        self._settings = settings = run.config.search
        self._at_once = at_once
        identity: list[Any] = [settings.max_loss, settings.n_startup_trials, settings.seed]
        identity.append({key: asdict(one) for key, one in plan.space.items()})
        digest = hash_json([*identity, run_key(run.config)])[:8]
        self.name = settings.study or f"{run.config.tracking.experiment}-{digest}"
        file = local_dir(self.config.tracking).absolute() / "search.db"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Two commands must not both make the tables.
            with lock(self.config.tracking, "searches"):
                self.study = optuna.create_study(
                    storage=f"sqlite:///{file}",
                    study_name=self.name,
                    direction="maximize",
                    load_if_exists=True,
                )
        except Exception as error:  # OSError, SQLAlchemy's, Optuna's
            reason = f"{file}, cannot be used: {describe_error(error)}"
            raise TrackingError(f"the file of the search, {reason}") from None
        self._proposed: list[Trial] = []

    def propose_batches(self) -> Iterator[list[ComposedRun]]:
        """Yield trials to run together; call `keep_outcomes` before the next batch.

        A trial whose settings do not fit together is refused: the study keeps it as failed.
        """
        tried: set[int] = set()  # a trial that fails stays open for the next command
        while True:
            trials = self.study.get_trials(deepcopy=False)
            is_open = [t for t in trials if not t.state.is_finished() and t.number not in tried]
            proposed = [Trial(self.study, t._trial_id) for t in is_open[: self._at_once]]
            n_new = min(self._settings.n_trials - len(trials), self._at_once - len(proposed))
            proposed += [self.study.ask() for _ in range(n_new)]
            if not proposed:
                return
            tried.update(trial.number for trial in proposed)
            runs = {trial.number: self._compose(trial) for trial in proposed}
            self._proposed = [trial for trial in proposed if runs[trial.number]]
            if batch := [run for run in runs.values() if run]:
                yield batch

    def _compose(self, trial: Trial) -> ComposedRun | None:
        # A seed for each trial: one for all would propose again, after a kill, its first.
        seed = int(hash_json([self._settings.seed, trial.number])[:8], 16)
        n_startup = self._settings.n_startup_trials
        with warnings.catch_warnings():  # of features that Optuna calls experimental
            warnings.simplefilter("ignore")
            self.study.sampler = optuna.samplers.TPESampler(n_startup_trials=n_startup, seed=seed)
        values = {key: suggest_value(trial, key, one) for key, one in self.space.items()}
        own = [f"{key}={value}" for key, value in values.items()]
        own.append(f"search.trial={trial.number}")
        overrides = [*self._line.overrides, *own]
        try:
            return compose_runs(replace(self._line, overrides=overrides)).runs[0]
        except ConfigError as error:  # each value was checked alone
            reason = " ".join(str(error).split())
            trial.set_user_attr("refused", reason)
            self.study.tell(trial, state=TrialState.FAIL)
            console.show_line(f"trial {trial.number} is refused ({', '.join(own[:-1])}): {reason}")
            return None

    def keep_outcomes(self, outcomes: Sequence[JobOutcome]) -> None:
        """Tell the study what became of the trials of the last batch; failed ones stay open."""
        for trial, outcome in zip(self._proposed, outcomes, strict=True):
            if outcome.state in (JobState.finished, JobState.skipped):
                trial.set_user_attr("run_id", outcome.run_id)
                findings = find_run(self.config.tracking, outcome.run_id).findings
                assert findings is not None  # the run is finished
                result = summarize_trial(findings, self._settings.max_loss)
                for name, excess in result.excess.items():
                    trial.set_constraint(name, excess)
                self.study.tell(trial, result.learned)

    def show(self) -> dict[str, str]:
        """Print all trials and the one to take; returns their page, by its name.

        The best within the budget stands first. Its losses are checked on the questions held out.

        Raises:
            ConfigError: Every trial is refused.
        """
        trials = self.study.get_trials(deepcopy=False)
        run_ids = [t.user_attrs["run_id"] for t in trials if "run_id" in t.user_attrs]
        runs = [find_run(self.config.tracking, run_id) for run_id in run_ids]
        refused = {t.number: t.user_attrs["refused"] for t in trials if "refused" in t.user_attrs}
        if len(refused) == len(trials):
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
            chosen = ["No trial is within the budget as measured: widen it, or the ranges."]
        else:
            reason = "which learned most of the trials within the budget; its adapter is in"
            chosen = [f"Chosen: {best.name} ({best.run_id[:8]}), {reason} {best.artifact_uri}."]
            if best.holdout:
                evaluations = read_evaluations(self.config.tracking, best)
                held = judge_held_out(*evaluations, best.holdout)
                for check in check_budgets(held, budgets):
                    line = f"{check.benchmark}: {check.outcome.name}, {check.reason}."
                    chosen.append(f"On the questions that did not choose it, {line}")
        chosen += [f"Trial {number} was refused: {reason}." for number, reason in refused.items()]
        table = replace(table, notes=(*chosen, *table.notes))
        console.show_table(table)
        return {"search.html": render_comparison_page(table, comparison)}


def suggest_value(trial: Trial, key: str, dimension: DimensionConfig) -> str:
    """Have a value proposed; returns it as a command line has it."""
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.choices:
        texts = [Transformer.str(value) for value in dimension.choices]
        return str(trial.suggest_categorical(key, texts))
    if "float" not in str(find_setting(key, RunConfig)):
        return str(trial.suggest_int(key, low, high, log=log))
    value = trial.suggest_float(key, low, high, log=log)
    return str(min(max(float(f"{value:.3g}"), low), high))  # further digits decide nothing
