"""A search: Optuna proposes values, a launcher runs them; the budget of forgetting constrains it.

Optuna is an extra. Its study is a file beside a local record and holds no results that are not in
the record: what a trial came to is read from its run.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from math import isfinite
from typing import Any

import optuna
from filelock import Timeout
from hydra.core.override_parser.types import Override
from optuna.trial import Trial, TrialState

from slimdown.config.command_line import CommandLine, ComposedRun, compose_runs
from slimdown.config.fields import setting_type
from slimdown.config.schema import RunConfig
from slimdown.config.search_config import DimensionConfig
from slimdown.report import console
from slimdown.report.comparison_page import render_comparison_page, search_table
from slimdown.stats.run_comparison import compare_runs
from slimdown.stats.trials import summarize_trial
from slimdown.sweep.jobs import JobOutcome, JobState
from slimdown.tracking.resume import run_key
from slimdown.tracking.run_reader import find_run
from slimdown.tracking.store import local_dir, lock
from slimdown.utils.errors import TrackingError, TrialPruned
from slimdown.utils.hashing import hash_json

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Search:
    """The trials of one study, those of earlier commands too."""

    def __init__(
        self, run: ComposedRun, space: dict[str, DimensionConfig], at_once: int = 1, **line: Any
    ) -> None:
        """Make the study, or open the one that is there.

        Args:
            run: Any trial; all have its settings but for what is searched.
            space: What is searched, by the settings' dotted keys.
            at_once: How many jobs the launcher runs at once.
            line: More of the trials' `CommandLine`, such as `folders`.

        Raises:
            TrackingError: The study's file cannot be used.
        """
        self.config, self.space = run.config, space
        self._settings = run.config.search
        own = {*space, "search.study"}
        self._fixed = [o for o in run.overrides if o.lstrip("+").partition("=")[0] not in own]
        self._at_once, self._line = self._settings.n_jobs or at_once, line
        of_all = ("max_loss", "n_startup_trials", "seed", "prune")
        identity: list[Any] = [getattr(self._settings, name) for name in of_all]
        identity.append({key: asdict(one) for key, one in space.items()})
        digest = hash_json([*identity, run_key(run.config)])[:8]
        self.name = self._settings.study or f"{run.config.tracking.experiment}-{digest}"
        with lock(run.config.tracking, "searches"):  # two commands must not both make the tables
            self.study = open_study(run.config, self.name, make=True)
        self._proposed: list[Trial] = []

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait until no other process works on this search: its open trials are then nobody's."""
        search_lock = lock(self.config.tracking, f"search-{hash_json(self.name)}")
        try:
            holding = search_lock.acquire(timeout=0)
        except Timeout:
            console.show_line("Another process works on this search; this one waits for it.")
            holding = search_lock.acquire()
        with holding:
            yield

    def propose_batches(self) -> Iterator[list[ComposedRun]]:
        """Yield trials to run together; call `keep_outcomes` before the next batch."""
        tried: set[int] = set()  # a trial that fails stays open for the next command
        while True:
            known = self.study.get_trials(deepcopy=False)
            is_open = [t for t in known if not t.state.is_finished() and t.number not in tried]
            n_new = max(0, self._settings.n_trials - len(known))
            self._proposed = []
            for trial in [*is_open, *[None] * n_new][: self._at_once]:
                number = (
                    len(self.study.get_trials(deepcopy=False)) if trial is None else trial.number
                )
                # A seed for each trial: one for all would propose again, after a kill, its first.
                seed = int(hash_json([self._settings.seed, number])[:8], 16)
                n_startup = self._settings.n_startup_trials
                with _without_warnings():
                    sampler = optuna.samplers.TPESampler(n_startup_trials=n_startup, seed=seed)
                self.study.sampler = sampler
                opened = Trial(self.study, trial._trial_id) if trial else self.study.ask()
                self._proposed.append(opened)
            if not self._proposed:
                return
            tried.update(trial.number for trial in self._proposed)
            yield [self._compose(trial) for trial in self._proposed]

    def _compose(self, trial: Trial) -> ComposedRun:
        values = {key: suggest_value(trial, key, one) for key, one in self.space.items()}
        own = [f"{key}={value}" for key, value in values.items()]
        own.append(f"search.study={Override._get_value_element_as_str(self.name)}")
        own.append(f"search.trial={trial.number}")
        return compose_runs(CommandLine([], [*self._fixed, *own], **self._line)).runs[0]

    def keep_outcomes(self, outcomes: Sequence[JobOutcome]) -> None:
        """Tell the study what became of the trials of the last batch; failed ones stay open."""
        for trial, outcome in zip(self._proposed, outcomes, strict=True):
            if outcome.state is JobState.pruned:
                self.study.tell(trial, state=TrialState.PRUNED)
            elif outcome.run_id and outcome.is_over and outcome.state is not JobState.failed:
                trial.set_user_attr("run_id", outcome.run_id)
                findings = find_run(self.config.tracking, outcome.run_id).findings
                assert findings is not None  # the run is finished
                result = summarize_trial(findings, self._settings.max_loss)
                for name, excess in result.excess.items():
                    trial.set_constraint(name, excess)
                is_number = isfinite(result.learned)
                state = TrialState.COMPLETE if is_number else TrialState.FAIL
                self.study.tell(trial, result.learned if is_number else None, state=state)

    def show(self) -> dict[str, str]:
        """Print all trials, the best within the budget first; returns their page, by its name."""
        trials = self.study.get_trials(deepcopy=False)
        run_ids = [t.user_attrs["run_id"] for t in trials if "run_id" in t.user_attrs]
        runs = [find_run(self.config.tracking, run_id) for run_id in run_ids]
        if not runs:
            return {}
        outcomes = {
            run.run_id: summarize_trial(run.findings, self._settings.max_loss)
            for run in runs
            if run.findings
        }
        runs.sort(key=lambda run: outcomes[run.run_id].order)
        n_pruned = sum(trial.state is TrialState.PRUNED for trial in trials)
        comparison = compare_runs(runs, group_seeds=False)
        table = search_table(comparison, outcomes, self.name, n_pruned)
        console.show_table(table)
        return {"search.html": render_comparison_page(table, comparison)}


def open_study(config: RunConfig, name: str, make: bool = False) -> optuna.Study:
    """Open a study in the file beside a local record.

    Raises:
        TrackingError: The file cannot be used, or has no such study.
    """
    file = local_dir(config.tracking).absolute() / "search.db"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        waiting = {"connect_args": {"timeout": 60}}  # seconds for the lock of another process
        storage = optuna.storages.RDBStorage(f"sqlite:///{file}", engine_kwargs=waiting)
        if make:
            return optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
        share, n_startup = 100 * (1 - config.search.prune), config.search.n_startup_trials
        pruner = optuna.pruners.PercentilePruner(share, n_startup)
        return optuna.load_study(study_name=name, storage=storage, pruner=pruner)
    except Exception as error:  # OSError, SQLAlchemy's, Optuna's
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise TrackingError(f"the file of the search, {file}, cannot be used: {reason}") from None


def suggest_value(trial: Trial, key: str, dimension: DimensionConfig) -> str:
    """Have a value proposed; returns it as a command line has it."""
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.choices:
        texts = [Override._get_value_element_as_str(value) for value in dimension.choices]
        return str(trial.suggest_categorical(key, texts))
    if "float" not in str(setting_type(tuple(key.split(".")), RunConfig)):
        return str(trial.suggest_int(key, low, high, log=log))
    value = trial.suggest_float(key, low, high, log=log)
    return str(min(max(float(f"{value:.3g}"), low), high))  # further digits decide nothing


def watch_trial(config: RunConfig) -> Callable[[float, float], None] | None:
    """Return what ends the training of a trial whose validation loss is among the highest.

    Optuna's percentile pruner compares trials at equal shares of their steps, and begins when
    `n_startup_trials` are complete. Where the study cannot be read, training goes on.

    Args:
        config: With `search.trial` and `search.study`.
    """
    settings = config.search
    try:
        study = open_study(config, settings.study or "")
        trial = Trial(study, study.get_trials(deepcopy=False)[settings.trial or 0]._trial_id)
    except (TrackingError, LookupError):
        return None

    def watch(share: float, loss: float) -> None:
        is_beaten = False
        with suppress(Exception), _without_warnings():
            trial.report(-loss, round(100 * share))  # the study maximizes
            is_beaten = trial.should_prune()
        if is_beaten:
            problem = f"its validation loss of {loss:.3f} is among the highest {settings.prune:.0%}"
            raise TrialPruned(f"pruned after {share:.0%} of its steps: {problem} of the trials")

    return watch


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Optuna warns of features that it calls experimental, and of values reported twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
