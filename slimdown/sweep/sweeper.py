"""The sweep of a command, with any launcher of Hydra: a job that fails or dies stops no other."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from slimdown.config.command_line import CommandLine, ComposedRun, compose_runs
from slimdown.config.naming import base_settings
from slimdown.config.schema import TrackingConfig
from slimdown.data.row_checks import check_row_files
from slimdown.report import console
from slimdown.report.record_tables import sweep_table
from slimdown.report.tables import write_table
from slimdown.report.text import shorten_findings
from slimdown.sweep.jobs import JobOutcome, JobState, SweepInfo, measure_base_job, run_sweep_job
from slimdown.tracking.resume import find_finished, mark_orphans_killed, run_key
from slimdown.tracking.store import check_store, find_experiment, open_store
from slimdown.tracking.sweep_run import SweepRun, open_sweep_run
from slimdown.utils.errors import ConfigError, DataError
from slimdown.utils.secrets import redact

_MOST_DEATHS = 3  # of a job's process: twice among others, at last alone


class SlimdownSweeper(Sweeper):
    """Hydra's plugin that starts the jobs of `-m`."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what launchers need; called by Hydra."""
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs, and show what became of them.

        Args:
            arguments: The settings of the command line.

        Raises:
            ConfigError: Lists the problems of all jobs; none was started.
            SystemExit: 1 where a job failed.
        """
        assert self.config is not None
        sources = self.config.hydra.runtime.config_sources
        folders = tuple(Path(s.path) for s in sources if s.schema == "file")
        plan = compose_runs(CommandLine([], arguments, folders, is_sweep=True, is_run=True))
        check_rows(plan.runs)
        folder = Path(self.config.hydra.sweep.dir).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        self.launcher_name = self.config.hydra.runtime.choices["hydra/launcher"]
        in_worker = self.launcher_name != "basic"
        self.info = SweepInfo(folder, folder.name, plan.swept, in_worker=in_worker)
        self.jobs: list[ComposedRun] = []
        self.outcomes: list[JobOutcome] = []
        tracking = plan.runs[0].config.tracking
        check_store(tracking)
        if plan.space:
            from slimdown.sweep.search import Search

            at_once = self.config.hydra.launcher.get("n_jobs") or 1
            search = Search(plan.runs[0], plan.space, at_once, folders=folders)
            self.info = replace(self.info, name=search.name)
            with search.hold(), self._record(tracking, "search") as sweep_run:
                for batch in search.propose_batches():
                    first = len(self.jobs)
                    self._run(batch)
                    search.keep_outcomes(self.outcomes[first:])
                sweep_run.save(search.show())
        else:
            unique = list({repr(run.config): run for run in plan.runs}.values())
            if len(unique) < len(plan.runs):
                n_equal = f"{len(plan.runs) - len(unique)} of {len(plan.runs)} jobs"
                console.show_line(f"{n_equal} equal another one; each is made once.")
            with self._record(tracking, "sweep"):
                self._run(unique)
        if any(outcome.state is JobState.failed for outcome in self.outcomes):
            sys.exit(1)

    @contextmanager
    def _record(self, tracking: TrackingConfig, kind: str) -> Iterator[SweepRun]:
        """Open the run of the whole sweep; show and keep the table of its jobs at the end."""
        title = f"{kind} of {', '.join(self.info.swept) or 'one job'}"
        with open_sweep_run(tracking, self.info.name, title) as sweep_run:
            self.info = replace(self.info, parent_run_id=sweep_run.run_id)
            try:
                yield sweep_run
            finally:
                rows: list[dict[str, Any]] = []
                for number, (job, outcome) in enumerate(zip(self.jobs, self.outcomes, strict=True)):
                    own = [text.lstrip("+") for text in job.overrides]
                    own = [text for text in own if text.partition("=")[0] in self.info.swept]
                    text = outcome.headline or outcome.reason
                    row = {"number": number + 1, "settings": " ".join(own), "state": outcome.state}
                    rows.append(row | {"run_id": outcome.run_id, "outcome": text})
                advice = "The same command makes what is not finished; rerun=true makes all again."
                if rows:
                    table = sweep_table(rows, f"{title} ({self.info.name}). {advice}")
                    console.show_table(table)
                    sweep_run.save({"sweep.md": write_table(table, "markdown")})
                if self.info.in_worker:  # their processes may have been killed
                    client = open_store(tracking)
                    experiment = find_experiment(client, tracking)
                    mark_orphans_killed(client, tracking, experiment, "")
                sweep_run.failed = any(o.state is JobState.failed for o in self.outcomes)

    def _run(self, jobs: list[ComposedRun]) -> None:
        """Run jobs but those that are finished; adds each job and its outcome."""
        first = len(self.jobs)
        self.jobs += jobs
        self.outcomes += [JobOutcome(JobState.waiting)] * len(jobs)
        self.info = replace(self.info, n_jobs=len(self.jobs))
        pending = []
        for number, job in enumerate(jobs, start=first):
            (self.info.folder / f"{number + 1}.json").unlink(missing_ok=True)
            is_fresh = job.config.rerun or not job.config.baseline.reuse
            finished = None if is_fresh else find_finished(job.config, run_key(job.config))
            if finished and finished.findings:
                headline = shorten_findings(finished.findings)
                self.outcomes[number] = JobOutcome(JobState.skipped, finished.run_id, headline)
            else:
                pending.append(number)
        if self.info.in_worker and pending:
            self._measure_bases(pending)
        for attempt in count(1):
            batches = [pending] if attempt < _MOST_DEATHS else [[number] for number in pending]
            for batch in filter(None, batches):
                error = self._launch(batch)
            pending = [number for number in pending if not self.outcomes[number].is_over]
            if not pending:
                return
            if attempt == 1 and error and not any(self.info.folder.glob("*.json")):
                raise self._explain_launcher(error)
            if attempt == _MOST_DEATHS:
                break
        for number in pending:
            reason = f"its process died {_MOST_DEATHS} times, at last with no other beside it"
            reason += redact(f"; {type(error).__name__}: {error}") if error else ""
            outcome = replace(self.outcomes[number], state=JobState.failed, reason=reason)
            self.outcomes[number] = outcome

    def _launch(self, numbers: list[int]) -> Exception | None:
        """Launch jobs and wait for them; returns what the launcher raised."""
        info = replace(self.info, numbers=tuple(numbers))
        task = partial(run_sweep_job, info)
        try:
            with self._show_progress(info):
                self._start(task, [self.jobs[number].overrides for number in numbers])
        except Exception as error:
            return error
        finally:
            for number in numbers:
                self.outcomes[number] = info.read_outcome(number)
        return None

    def _start(self, task: TaskFunction, overrides: Sequence[list[str]]) -> None:
        assert self.config is not None
        assert self.hydra_context is not None
        plugins = Plugins.instance()
        launcher = plugins.instantiate_launcher(self.hydra_context, task, self.config)
        launcher.launch(list(overrides), initial_job_idx=0)

    def _measure_bases(self, numbers: list[int]) -> None:
        """Measure each base that several jobs have, once, before they start together."""
        by_base: dict[str, list[int]] = {}
        for number in numbers:
            config = self.jobs[number].config
            if config.baseline.reuse:
                by_base.setdefault(repr(base_settings(config)), []).append(number)
        shared = [numbers[0] for numbers in by_base.values() if len(numbers) > 1]
        if shared:
            task = partial(measure_base_job, self.info.folder)
            try:
                with console.progress_bar(f"measuring {len(shared)} base model(s)"):
                    self._start(task, [self.jobs[number].overrides for number in shared])
            except Exception as error:
                raise self._explain_launcher(error) from error

    def _explain_launcher(self, error: Exception) -> ConfigError:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(" .:;")
        advice = "its settings are hydra.launcher.*, and --cfg hydra shows them"
        name = self.launcher_name
        if "plugin class" in reason:  # Hydra's plugin is not installed
            extra = name if name in ("joblib", "ray") else "slurm"
            reason, advice = "its plugin is not installed", f"pip install 'slimdown[{extra}]'"
        return ConfigError(f"hydra/launcher={name} cannot start jobs: {redact(reason)}; {advice}")

    @contextmanager
    def _show_progress(self, info: SweepInfo) -> Iterator[None]:
        """Show how many jobs are over, where they run in other processes."""
        if not info.in_worker:
            yield
            return
        ended = Event()
        with console.progress_bar("running the jobs") as update:

            def poll() -> None:
                while not ended.wait(1):
                    outcomes = [info.read_outcome(number) for number in info.numbers]
                    n_over = sum(outcome.is_over for outcome in outcomes)
                    update(n_over, len(outcomes), f"logs are in {info.folder}")

            Thread(target=poll, daemon=True).start()
            try:
                yield
            finally:
                ended.set()


def register_sweeper() -> None:
    """Let conf/hydra/sweeper/ name the sweeper.

    Hydra takes plugins from the package `hydra_plugins` alone, and every program of this Python
    that uses Hydra imports what lies there: so the sweeper is entered under such a name.
    """
    classes = Plugins.instance().class_name_to_class
    classes["hydra_plugins.slimdown.SlimdownSweeper"] = SlimdownSweeper


def check_rows(runs: Sequence[ComposedRun]) -> None:
    """Look at the first rows of every local file before anything starts.

    Raises:
        DataError: Lists the problems of all files.
    """
    datasets: Mapping[str, Any] = {repr(run.config.dataset): run.config.dataset for run in runs}
    problems = [problem for each in datasets.values() for problem in check_row_files(each)]
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
