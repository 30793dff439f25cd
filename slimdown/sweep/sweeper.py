"""The sweep of a command, with any launcher of Hydra: a job that fails or dies stops no other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from slimdown.comparison.run_comparison import check_prompts, compare_runs
from slimdown.config.naming import base_settings
from slimdown.config.tracking_config import TrackingConfig
from slimdown.models.shared_base import SharedBase
from slimdown.report import console
from slimdown.report.brief_comparison import order_by_settings
from slimdown.report.tables import sweep_table, write_table
from slimdown.sweep.command_line import CommandLine, CommandPlan, ComposedRun
from slimdown.sweep.jobs import (
    JobOutcome,
    JobState,
    SweepInfo,
    measure_base_job,
    run_sweep_job,
    skip_finished,
)
from slimdown.sweep.launchers import LAUNCHERS
from slimdown.sweep.launching import launch
from slimdown.tracking.resume import find_finished, run_key
from slimdown.tracking.run_reader import find_run
from slimdown.tracking.store import check_store
from slimdown.tracking.sweep_run import SweepRun, open_sweep_run
from slimdown.utils.errors import ConfigError, TrackingError, describe_error
from slimdown.utils.extras import name_install
from slimdown.utils.secrets import redact


class Sweep:
    """The jobs of one command with `-m`, and what becomes of them."""

    def __init__(self, line: CommandLine, plan: CommandPlan) -> None:
        """Take a command line and its checked runs."""
        self.line, self.plan = line, plan
        self.jobs: dict[int, ComposedRun] = {}  # by number, from 1, like the outcomes
        self.outcomes: dict[int, JobOutcome] = {}
        settings = plan.hydra.hydra
        folder = Path(settings.sweep.dir).absolute()
        self.launcher_name = settings.runtime.choices["hydra/launcher"]
        if launcher := LAUNCHERS.get(self.launcher_name):
            launcher.check_settings(settings.launcher)
        in_worker = self.launcher_name != "basic"
        self.info = SweepInfo(folder, folder.name, plan.swept, in_worker=in_worker)

    def run(self) -> int:
        """Run all jobs, and show what became of them.

        Returns:
            The exit code: 1 where a job failed.

        Raises:
            ConfigError: The launcher cannot start a job.
        """
        self.info.folder.mkdir(parents=True, exist_ok=True)
        tracking = self.plan.runs[0].config.tracking
        check_store(tracking)
        holds_out = any(run.config.evaluation.holdout for run in self.plan.runs)
        # A sweep of seeds alone shows how much results vary: nobody chooses the best seed.
        varies_more_than_seed = bool({*self.info.swept} - {"seed"})
        if varies_more_than_seed and not holds_out:
            note = "No questions are held out, so the best of these runs will look better than it "
            note += "is. evaluation.holdout=0.5 keeps half of them to confirm the one you choose."
            console.show_notes([note])
        if self.plan.space:
            from slimdown.sweep.search import Search

            search = Search(self.line, self.plan, at_once=self.count_at_once())
            self.info = replace(self.info, name=search.name)
            with self._record(tracking, "search") as sweep_run:
                for batch in search.propose_batches():
                    search.keep_outcomes(self._run(batch))
                sweep_run.files |= search.show()
        else:
            with self._record(tracking, "sweep"):
                self._run(self.plan.runs)
        return 1 if JobState.failed in self._find_states() else 0

    def _find_states(self) -> set[JobState]:
        return {outcome.state for outcome in self.outcomes.values()}

    def count_at_once(self) -> int:
        """Return how many trials are proposed together."""
        search = self.plan.runs[0].config.search
        if search.at_once or self.launcher_name == "basic":
            return search.at_once or 1
        launcher = LAUNCHERS.get(self.launcher_name)
        if not launcher or not launcher.count_jobs:
            return search.n_startup_trials
        return launcher.count_jobs(self.plan.hydra.hydra.launcher)

    @contextmanager
    def _record(self, tracking: TrackingConfig, kind: str) -> Iterator[SweepRun]:
        """Open the run of the whole sweep in the record; at the end, show the result of its jobs.

        It is shown also if the sweep is interrupted, and a table of the jobs is recorded.

        Args:
            tracking: The store.
            kind: `search` or `sweep`, for the title.

        Yields:
            The open run, which takes further files.

        Raises:
            TrackingError: The store does not answer when the sweep begins.
        """
        title = f"{kind} of {', '.join(self.info.swept) or 'one job'}"
        if name := self.plan.runs[0].config.name:
            title = f"{name}: {title}"
        with open_sweep_run(tracking, self.info.name, title) as sweep_run:
            try:
                yield sweep_run
            finally:
                if rows := [self._make_row(number) for number in self.outcomes]:
                    table = sweep_table(rows, f"{title}. {self._advise()}")
                    # A comparison of a sweep's runs says more than this table, if one can be made.
                    # A search has compared its trials itself, and this table comes after that.
                    has_comparison = kind == "sweep" and self._show_comparison(tracking, title)
                    if not has_comparison:
                        console.show_table(table)
                    sweep_run.files["sweep.md"] = write_table(table, "markdown")
                sweep_run.failed = JobState.failed in self._find_states()

    def _make_row(self, number: int) -> dict[str, Any]:
        """Make the row of a job in the table: its values of what is swept, and its outcome."""
        texts = [text.lstrip("+") for text in self.jobs[number].overrides]
        swept = [text for text in texts if text.partition("=")[0] in self.info.swept]
        outcome = self.outcomes[number]
        return {
            "number": number,
            "settings": " ".join(swept),
            "state": outcome.state,
            "run_id": outcome.run_id,
            "outcome": outcome.headline or outcome.reason,
        }

    def _advise(self) -> str:
        """Say how to go on after the sweep."""
        states = self._find_states()
        chosen = f" --sweep {self.info.name}" if JobState.finished in states else ""
        advice = f"slimdown compare{chosen} shows the runs side by side. "
        if states - {JobState.finished, JobState.skipped}:
            advice += "Repeat the command to finish the rest. "
        return advice + "To run all of it again, add rerun=true."

    def _show_comparison(self, tracking: TrackingConfig, title: str) -> bool:
        """Show the changes on each benchmark by the values that were swept, if all jobs have some.

        Args:
            tracking: The store.
            title: What stands above the comparison.

        Returns:
            Whether it is shown. It is not if there is one job, if a job is not finished, or if the
            runs cannot be compared.
        """
        states = self._find_states()
        if len(self.outcomes) < 2 or states - {JobState.finished, JobState.skipped}:
            return False
        try:
            runs = [find_run(tracking, outcome.run_id) for outcome in self.outcomes.values()]
            check_prompts(runs)
        except (ConfigError, TrackingError):  # the runs had other prompts, or one was deleted
            return False
        if not all(run.findings for run in runs):
            return False
        # Skipped runs bear the name of an earlier sweep, so `--sweep` would not find them.
        chosen = "" if JobState.skipped in states else f"--sweep {self.info.name} "
        advice = f"slimdown compare {chosen}--no-group-seeds shows each run. "
        advice += "To run all of it again, add rerun=true."
        comparison = order_by_settings(compare_runs(runs))
        console.show_comparison(comparison, f"{title}: {len(runs):,} runs", [advice])
        return True

    def _run(self, jobs: list[ComposedRun]) -> list[JobOutcome]:
        """Run the jobs that are not finished, and return the outcome of every job, in order.

        A launcher may raise while some of its jobs have not begun; these are launched again. A job
        whose process died, as for lack of memory, runs once more, with no other beside it.

        Args:
            jobs: A whole sweep, or a batch of a search; earlier batches stay in `self.jobs`.

        Raises:
            ConfigError: The launcher cannot start a job.
        """
        numbered = dict(enumerate(jobs, start=len(self.jobs) + 1))
        pending = self._take_jobs(numbered)  # the numbers of jobs that have to run
        if self.info.in_worker and pending:
            self._measure_shared_bases(pending)
            console.show_line(f"{len(pending)} jobs; their logs are in {self.info.folder}")
        while pending:
            error = self._launch(pending)
            waiting = [n for n in pending if self.outcomes[n].state is JobState.waiting]
            died = [n for n in pending if not self.outcomes[n].is_over and n not in waiting]
            # If some jobs have begun, the launcher works in principle. Then an error of this launch
            # is dropped: each job that began has its own outcome, and the others begin in the next
            # launch. If none has begun, the next launch would begin none either.
            if waiting == pending:
                reason = describe_error(error) if error else "it began no job, without an error"
                raise self._explain_launcher(reason)
            for number in died:  # joblib also ends jobs that ran beside the one that died
                self._run_alone(number)
            pending = waiting  # fewer than before, so the loop ends
        return [self.outcomes[number] for number in numbered]

    def _take_jobs(self, jobs: dict[int, ComposedRun]) -> list[int]:
        """Take jobs into the sweep; return the numbers of those that have to run.

        A job whose run the record has already is skipped. The settings of all others are written
        for the processes that run them.

        Args:
            jobs: The new jobs by number.
        """
        self.jobs |= jobs
        self.outcomes |= dict.fromkeys(jobs, JobOutcome(JobState.waiting))
        self.info = replace(self.info, n_jobs=len(self.jobs))
        pending = []
        for number, job in jobs.items():
            earlier_outcome = self.info.folder / f"{number}.json"  # of a sweep in the same folder
            earlier_outcome.unlink(missing_ok=True)
            finished = find_finished(job.config, run_key(job.config))
            if finished and finished.findings:
                self.outcomes[number] = skip_finished(job, finished, self.info.swept)
            else:
                self.info.write_settings(number, job)
                pending.append(number)
        return pending

    def _measure_shared_bases(self, numbers: list[int]) -> None:
        """Measure the bases that jobs share: started together, each would measure them itself."""
        configs = {number: self.jobs[number].config for number in numbers}
        bases = {repr(base_settings(c)): n for n, c in configs.items() if c.baseline.reuse}
        if 0 < len(bases) < len(numbers):
            with console.progress_bar(f"measuring {len(bases)} base model(s)"):
                error = self._start(measure_base_job, list(bases.values()))
            if error:
                raise self._explain_launcher(describe_error(error))

    def _run_alone(self, number: int) -> None:
        """Run a job again whose process died, with no other beside it."""
        # In a queue of Slurm or Ray it may have gone on, and ended, meanwhile.
        self.outcomes[number] = self.info.read_outcome(number)
        error = None if self.outcomes[number].is_over else self._launch([number])
        outcome = self.outcomes[number]
        if not outcome.is_over:
            reason = "its process died twice, the second time with no other process beside it"
            if error:
                reason += redact(f"; {describe_error(error)}")
            self.outcomes[number] = replace(outcome, state=JobState.failed, reason=reason)

    def _launch(self, numbers: list[int]) -> Exception | None:
        """Launch jobs, and read what became of them; returns what the launcher raised."""
        try:
            return self._start(partial(run_sweep_job, shared_base=SharedBase()), numbers)
        finally:
            for number in numbers:
                self.outcomes[number] = self.info.read_outcome(number)

    def _start(
        self, task: Callable[[SweepInfo, object], None], jobs: list[int]
    ) -> Exception | None:
        """Start a task for each job, and wait for all; returns what the launcher raised."""
        info = replace(self.info, numbers=tuple(jobs))
        try:
            launch(self.plan.hydra, partial(task, info), [self.jobs[n].overrides for n in jobs])
        except Exception as error:
            return error
        return None

    def _explain_launcher(self, reason: str) -> ConfigError:
        """Return the error that says why the launcher starts no job."""
        name, reason = self.launcher_name, redact(reason).rstrip(" .:;")
        advice = "its settings are hydra.launcher.*, and --cfg hydra shows them"
        if "plugin class" in reason and name in LAUNCHERS:  # Hydra's plugin is not installed
            advice = name_install(LAUNCHERS[name].extra)
        return ConfigError(f"hydra/launcher={name} cannot start jobs: {reason}; {advice}")
