"""The study of a search: which values were tried, what came of them, and which to try next. Kept by Optuna.

Optuna is an extra, and imported where it is used. Its study stands beside the record and holds no results that are not
there: what a trial came to is read from its run.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from slimdown.config.schema import DEFAULT_STORE, RunConfig
from slimdown.config.search import DimensionConfig, Sampler, is_whole
from slimdown.stats.runs import RecordedRun
from slimdown.stats.search import Outcome, outcome
from slimdown.tracking.connection import first_line, sqlite_file
from slimdown.tracking.done import run_key
from slimdown.tracking.names import making
from slimdown.utils.digests import digest
from slimdown.utils.errors import SlimdownError, TrialPruned
from slimdown.utils.redaction import public_uri

_OF_ALL = ("max_loss", "sampler", "n_startup_trials", "seed", "prune")  # what one study has one of

if TYPE_CHECKING:
    import optuna

    from slimdown.training.watching import Watch


@dataclass(frozen=True)
class Trial:
    """One that is to be made: its number in the study, and the value of each setting as a command line has it."""

    number: int
    values: dict[str, str]


class Study:
    """The trials of one search, those of earlier commands too."""

    def __init__(self, config: RunConfig, space: dict[str, DimensionConfig]) -> None:
        """Make the study, or open the one that is there.

        Args:
            config: of every trial, but for what is searched.
            space: what is searched, by the settings' dotted keys.

        Raises:
            SlimdownError: its database cannot be used.
        """
        self._config, self._search, self._space = config, config.search, space
        of_all = [
            *(getattr(self._search, name) for name in _OF_ALL),
            {key: asdict(one) for key, one in space.items()},
        ]
        self._given: set[int] = set()  # trials that this command makes
        self.name = (
            self._search.study
            or f"{config.tracking.experiment}-{digest([run_key(config), of_all])[:8]}"
        )
        self._study = _opened(config, self.name, make=True)

    @property
    def n_left(self) -> int:
        """How many trials are to be made."""
        trials = self._study.get_trials(deepcopy=False)
        return max(self._search.n_trials, len(trials)) - sum(
            trial.state.is_finished() for trial in trials
        )

    def ask(self, most: int) -> list[Trial]:
        """The trials to be made next, none where all are: first those whose process died or that failed before."""
        with _quiet():
            known = self._study.get_trials(deepcopy=False)
            n_new = max(0, self._search.n_trials - len(known))
            still_open = [
                trial
                for trial in known
                if not trial.state.is_finished() and trial.number not in self._given
            ]
            asked = [self._proposed(trial) for trial in [*still_open, *[None] * n_new][:most]]
        self._given |= {trial.number for trial in asked}
        return asked

    def _proposed(self, known: "optuna.trial.FrozenTrial | None") -> Trial:
        import optuna

        number = len(self._study.get_trials(deepcopy=False)) if known is None else known.number
        self._study.sampler = self._sampler(number)
        trial = (
            self._study.ask() if known is None else optuna.trial.Trial(self._study, known._trial_id)
        )
        return Trial(number, {key: _value(trial, key, one) for key, one in self._space.items()})

    def _sampler(self, number: int) -> "optuna.samplers.BaseSampler":
        """Seeded for each trial: one seed for a command would propose again, after a kill, what it began with."""
        import optuna

        seed = int(digest([self._search.seed, number])[:8], 16)
        if self._search.sampler is Sampler.random:
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(n_startup_trials=self._search.n_startup_trials, seed=seed)

    def outcome(self, run: RecordedRun) -> Outcome:
        """What a finished run came to."""
        made = making(run)
        fall = made.validation_loss_before - made.validation_loss_after
        return outcome(run.changes, self._config.benchmark, self._search.max_loss, fall)

    def tell(self, number: int, run: RecordedRun) -> None:
        """Keep what came of a trial: its run is finished, or was pruned. Until it is told, a trial stays open."""
        import optuna

        with _quiet():
            trial = _trial(self._study, number)
            trial.set_user_attr("run_id", run.run_id)
            if run.status != "FINISHED":
                self._study.tell(number, state=optuna.trial.TrialState.PRUNED)
                return
            found = self.outcome(run)
            for name, excess in found.excess.items():
                trial.set_constraint(name, excess)
            if isfinite(found.learned):
                self._study.tell(number, found.learned)
            else:
                self._study.tell(number, state=optuna.trial.TrialState.FAIL)

    @property
    def run_ids(self) -> dict[int, str]:
        """The run of each trial that was told, by its number."""
        trials = self._study.get_trials(deepcopy=False)
        return {
            trial.number: trial.user_attrs["run_id"]
            for trial in trials
            if trial.state.is_finished()
        }


def watch(config: RunConfig) -> "Watch | None":
    """What ends the training of a trial whose validation loss is among the highest; None where nothing is to.

    Optuna's percentile pruner compares trials at equal shares of their steps, and begins when `n_startup_trials` are
    complete. Where the study cannot be asked, training goes on.
    """
    search = config.search
    if search.trial is None or not search.prune:
        return None
    with suppress(SlimdownError, ImportError), _quiet():
        import optuna

        study = _opened(config, search.study or "")
        study.pruner = optuna.pruners.PercentilePruner(
            100 * (1 - search.prune), search.n_startup_trials
        )
        trial = _trial(study, search.trial)

        def told(share: float, loss: float) -> None:
            is_beaten = False
            with suppress(Exception), _quiet():
                trial.report(-loss, round(100 * share))  # the study maximizes
                is_beaten = trial.should_prune()
            if is_beaten:
                raise TrialPruned(
                    f"pruned after {share:.0%} of its steps: its validation loss of {loss:.3f} is among the highest "
                    f"{search.prune:.0%} of the trials so far"
                )

        return told
    return None


def _value(trial: "optuna.trial.Trial", key: str, one: DimensionConfig) -> str:
    if one.choices:
        return str(trial.suggest_categorical(key, one.values()))
    if is_whole(key, RunConfig):
        return str(trial.suggest_int(key, one.low, one.high, log=one.log))
    value = trial.suggest_float(key, one.low, one.high, log=one.log)
    return str(min(max(float(f"{value:.3g}"), one.low), one.high))  # further digits decide nothing


def _trial(study: "optuna.Study", number: int) -> "optuna.trial.Trial":
    import optuna

    return optuna.trial.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def _opened(config: RunConfig, name: str, make: bool = False) -> "optuna.Study":
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = config.search.storage or _beside(config.tracking.uri)
    try:
        if file := sqlite_file(url):
            file.parent.mkdir(parents=True, exist_ok=True)
        waiting: dict[str, Any] = {"connect_args": {"timeout": 60}} if file else {}
        storage = optuna.storages.RDBStorage(url, engine_kwargs=waiting)
        if make:
            return optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
        return optuna.load_study(storage=storage, study_name=name)
    except Exception as error:  # OSError, SQLAlchemy's, each driver's
        raise SlimdownError(
            f"search.storage={public_uri(url)} cannot be used: {first_line(error)}; choose a file that you can write, "
            "e.g. search.storage=sqlite:///mlruns/search.db, or a database that answers"
        ) from None


def _beside(tracking_uri: str) -> str:
    """The study's file: in the folder of a local record; for a server's, in the folder of the default one."""
    file = sqlite_file(tracking_uri) or sqlite_file(DEFAULT_STORE)
    assert file
    return f"sqlite:///{file.absolute().with_name('search.db')}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna warns of where a killed trial is told again what it was told before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
