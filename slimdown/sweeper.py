"""The sweep of a command, started by any of Hydra's launchers: what becomes of each job, whatever ends it."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.plugins import Plugins

Plugins.instance()  # whose search executes the next modules once more: classes derived before are of none (Hydra 1.3.8)

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from slimdown.config.launchers import inherited
from slimdown.config.loader import load_config
from slimdown.config.schema import TrackingConfig
from slimdown.job import work
from slimdown.tracking.owner import INTERVAL, owner_tags
from slimdown.tracking.tags import Tag
from slimdown.utils import interruption
from slimdown.utils.digests import digest
from slimdown.utils.errors import ConfigError, SlimdownError
from slimdown.utils.redaction import redact

if TYPE_CHECKING:
    from slimdown.report.sweep import Sweep
    from slimdown.searching import Search

_OFTEN = 0.5  # seconds between two looks at what workers wrote down
_MOST_DEATHS = (
    2  # of processes that a job was in; it is started alone then, where one more is its failure
)


class Sweeper(BasicSweeper):
    """Hydra's sweeper, whose jobs come back as data: one that fails, or whose process dies, stops no other."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Make the launcher, which is given `job.work` in place of the function of a single run."""
        from slimdown.report.sweep import Sweep

        self.told = Sweep(Path(config.hydra.sweep.dir))
        self.told.owner = owner_tags()[Tag.owner]
        super().setup(
            hydra_context=hydra_context, task_function=partial(work, self.told), config=config
        )
        self.told.in_process = isinstance(self.launcher, BasicLauncher)
        self.told.environment = inherited(self.launcher)

    def sweep(self, arguments: list[str]) -> None:
        """Start the jobs, and show what became of them.

        Raises:
            SystemExit: 1, where a job failed.
        """
        from slimdown.report import console
        from slimdown.report.sweep import State

        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        search = _search(self.config, overrides, self.told) if self.config.search.space else None
        self.told.folder.mkdir(parents=True, exist_ok=True)
        self._stores = [search.store] if search else []
        batches = search.batches() if search else self._planned(overrides)
        OmegaConf.save(self.config, self.told.folder / "multirun.yaml")
        n_begun, ended = 0, threading.Event()
        if self.told.key:
            threading.Thread(
                target=self._beat, args=(ended,), name="heartbeat", daemon=True
            ).start()
        try:
            for batch in batches:
                self._until_ended(dict(enumerate(batch, start=n_begun)))
                n_begun += len(batch)
        finally:
            ended.set()
            # Of a search there may be nothing left to do.
            if self.told.jobs and not isinstance(sys.exception(), ConfigError):
                console.show_sweep(self.told)
            # A store that is gone, as jobs have said; or a signal, which is remembered.
            with suppress(Exception, KeyboardInterrupt), interruption.undisturbed():
                self._close(search)
        if search:
            search.show()
        if any(job.state is State.failed for job in self.told.jobs):
            sys.exit(1)

    def _planned(self, overrides: list[Override]) -> Iterable[list[list[str]]]:
        batches = [
            _by_base(batch) for batch in self.split_arguments(overrides, self.max_batch_size)
        ]
        swept = [
            override.get_key_element() for override in overrides if override.is_sweep_override()
        ]
        jobs = [job for batch in batches for job in batch]
        self.told.plan(jobs, swept)
        self.told.key = digest(sorted(sorted(job) for job in jobs)) if len(jobs) > 1 else ""
        if self.told.key:
            stores = {
                next((o for o in job if o.startswith("tracking.uri=")), ""): job for job in jobs
            }
            self._stores = [self._tracking(job) for job in stores.values()]
        return batches

    def _records(self) -> list[TrackingConfig]:
        """Where jobs that have begun are recorded: store and experiment may be swept."""
        experiments = dict.fromkeys(job.experiment for job in self.told.jobs if job.experiment)
        return [
            replace(store, experiment=experiment)
            for store in self._stores
            for experiment in experiments
        ]

    def _beat(self, ended: threading.Event) -> None:
        from slimdown.tracking.sweeps import tell_sweep

        while not ended.wait(INTERVAL):
            for record in self._records():
                with suppress(Exception):  # a store that is silent: the next one may arrive
                    tell_sweep(record, self.told.key, self.told.owner, self.told.tally)

    def _close(self, search: "Search | None") -> None:
        """End each experiment's run that holds those of the jobs, with what became of them and how they compare."""
        from slimdown.report.comparison import comparison_page, comparison_table
        from slimdown.report.sweep import State
        from slimdown.report.table import write
        from slimdown.stats.comparison import compare
        from slimdown.tracking.sweeps import close_sweep, runs_of

        def files() -> Iterator[tuple[str, str]]:
            yield "sweep.md", write(told.table(), "markdown")
            if search:
                yield from search.page()
            elif runs := runs_of(record, [job.run_id for job in told.jobs]):
                comparison = compare(runs)
                table = comparison_table(comparison, f"{told.title}: {len(runs)} finished")
                yield "comparison.html", comparison_page(comparison, table, None)

        told = self.told
        for record in self._records() if told.key else []:
            states = {job.state for job in told.jobs if job.experiment in (record.experiment, "")}
            killed = bool(states & {State.interrupted, State.to_do, State.at_work})
            status = "KILLED" if killed else "FAILED" if State.failed in states else "FINISHED"
            close_sweep(record, told.key, status, told.tally(), files)

    def _until_ended(self, overrides: dict[int, list[str]]) -> None:
        """Start jobs, and again those put off, or whose process died: at the third time alone."""
        from slimdown.report.sweep import ENDS, State

        jobs, deaths = self.told.jobs, Counter[int]()
        waiting = [list(overrides)]
        while waiting:
            together = waiting.pop(0)
            error = self._launch({number: overrides[number] for number in together})
            left = [number for number in together if jobs[number].state not in ENDS]
            if error and not any(job.began for job in jobs):
                raise self._refusal(error) from error
            died = [number for number in left if jobs[number].state is not State.elsewhere]
            deaths.update(
                [number for number in died if jobs[number].state is not State.to_do] or died
            )
            if together == left[:1] and deaths[left[0]] > _MOST_DEATHS:
                self._fail(left.pop(), overrides[together[0]], error)
            alone = [[number] for number in left if deaths[number] >= _MOST_DEATHS]
            again = [number for number in left if deaths[number] < _MOST_DEATHS]
            waiting = [*([again] if again else []), *alone, *waiting]

    def _refusal(self, error: Exception) -> Exception:
        """What the launcher's error means for a person, before any job began."""
        if self.told.in_process or isinstance(error, SlimdownError):
            return error
        assert self.config is not None
        name = self.config.hydra.runtime.choices["hydra/launcher"]
        reason = (
            next(iter(str(error).strip().splitlines()), "").rstrip(" .:;") or type(error).__name__
        )
        advice = "its settings are hydra.launcher.*, and --cfg hydra shows them"
        if name.startswith("submitit") and any(self.told.folder.glob(".submitit/*/*")):
            advice = f"what its processes printed is in {self.told.folder / '.submitit'}"
        return ConfigError(f"hydra/launcher={name} cannot start jobs: {redact(reason)}; {advice}")

    def _launch(self, overrides: dict[int, list[str]]) -> Exception | None:
        """Launch jobs and wait for them; returns what the launcher raised.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        assert self.launcher is not None
        first = self.told.launch(list(overrides))
        with nullcontext() if self.told.in_process else self._watching():
            try:
                # Hydra's sweeper would compose every job before, as `check_command_line` has.
                returned = self.launcher.launch(list(overrides.values()), initial_job_idx=first)
            except Exception as error:
                return error
        for number, job in zip(overrides, returned, strict=True):
            if job.status is JobStatus.COMPLETED:
                self.told.jobs[number] = job.return_value
        return None

    def _fail(self, number: int, overrides: list[str], error: Exception | None) -> None:
        from slimdown.report.sweep import State
        from slimdown.tracking.unfinished import mark_failed

        job = self.told.jobs[number]
        reason = (
            " ".join(f"{type(error).__name__}: {error}".split()) if error else "it was interrupted"
        )
        job.state = State.failed
        job.what = redact(
            f"its process died {_MOST_DEATHS + 1} times, the last time with no other beside it; {reason}"
        )
        with suppress(Exception):  # a store that is gone, as other jobs will say
            mark_failed(self._tracking(overrides), job.run_id, job.what, job.owner)

    def _tracking(self, overrides: list[str]) -> TrackingConfig:
        """Where a job is recorded."""
        assert self.hydra_context is not None
        assert self.config is not None
        composed: Any = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(composed):
            del composed["hydra"]
        return load_config(composed).tracking

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Inside, what workers tell is shown; a signal makes them end, and is raised when they have.

        Raises:
            KeyboardInterrupt: a signal came.
        """
        from slimdown.report import console

        ended = threading.Event()
        try:
            with interruption.undisturbed(), console.sweep_status(self.told) as show:
                watch = threading.Thread(
                    target=self._watch, args=(ended, show), name="sweep", daemon=True
                )
                watch.start()
                try:
                    yield
                finally:
                    ended.set()
                    watch.join()
                    show()
        except KeyboardInterrupt as stop:
            stop.add_note(
                "Runs that were at work are marked KILLED and keep what was recorded so far."
            )
            raise

    def _watch(self, ended: threading.Event, show: Callable[[], None]) -> None:
        while not ended.wait(_OFTEN):
            show()
            if interruption.interrupted() and not self.told.stop.exists():
                self.told.stop.touch()
                if queued := [folder.name for folder in self.told.folder.glob(".submitit/[0-9]*")]:
                    with suppress(OSError):  # jobs that are processes here, and end by themselves
                        subprocess.run(["scancel", *queued], capture_output=True)


def _by_base(jobs: list[list[str]]) -> list[list[str]]:
    """The same jobs, those of one base one after the other: a process keeps the one that it has loaded."""
    of_base: dict[tuple[str, ...], list[list[str]]] = {}
    for job in jobs:
        chosen = (
            override
            for override in job
            if override.startswith(("model", "quantization", "experiment="))
        )
        of_base.setdefault(tuple(chosen), []).append(job)
    return [job for together in of_base.values() for job in together]


def _search(composed: DictConfig, overrides: list[Override], jobs: "Sweep") -> "Search":
    from slimdown.searching import Search

    return Search(composed, overrides, jobs)


def register(sweeper: type[BasicSweeper]) -> None:
    """Let configs name a sweeper as `hydra_plugins.slimdown.NAME`.

    Hydra takes plugins out of the package `hydra_plugins` alone, and whatever lies there is imported by all programs
    of this Python that use Hydra.
    """
    Plugins.instance().class_name_to_class[f"hydra_plugins.slimdown.{sweeper.__name__}"] = sweeper
