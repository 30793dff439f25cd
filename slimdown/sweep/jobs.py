"""One job of a command: its checked settings become a run, unless an equal one is finished.

Torch is imported only when a run has to be made: it takes seconds, and a typo, a silent store or a
finished run should not wait for it.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import fmean

from hydra.core.hydra_config import HydraConfig

from slimdown.comparison.run_records import RunRecord
from slimdown.config.naming import run_name
from slimdown.config.tracking_config import default_store
from slimdown.judging.serialization import from_plain, to_plain
from slimdown.models.shared_base import SharedBase
from slimdown.report import console
from slimdown.report.formatting import format_duration
from slimdown.sweep.command_line import ComposedRun
from slimdown.sweep.launchers import is_queued_again
from slimdown.tracking.finished_runs import rename_run
from slimdown.tracking.metrics_and_tags import Tag, describe_verdicts
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.resume import describe_kept, find_equal_run_and_lock, run_key
from slimdown.tracking.run_files import describe_run
from slimdown.tracking.store import check_store, sqlite_file
from slimdown.utils.distributed import broadcast_from_main
from slimdown.utils.errors import SlimdownError, TrackingError, describe_error
from slimdown.utils.files import write_atomically
from slimdown.utils.secrets import redact, redact_leaf, redact_uri
from slimdown.utils.tested_versions import explain_library_change


class JobState(StrEnum):
    running = "running"
    finished = "finished"
    skipped = "skipped"  # an equal run is finished
    failed = "failed"
    killed = "killed"  # by a signal
    waiting = "to do"


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job.

    Attributes:
        state: How it ended.
        run_id: Its run in the record; "" where it has none.
        headline: The sign of each verdict.
        reason: Why it failed, in one line.
        seconds: How long it took.
    """

    state: JobState
    run_id: str = ""
    headline: str = ""
    reason: str = ""
    seconds: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.state not in (JobState.running, JobState.killed, JobState.waiting)


@dataclass(frozen=True)
class SweepInfo:
    """What a sweep tells its jobs, in this process or in a launcher's worker.

    Attributes:
        folder: Where each job finds its settings and leaves its outcome, and its log where it runs
            in a worker.
        name: The name that all runs of the sweep share.
        swept: The keys that have several values.
        n_jobs: The number of jobs in the whole sweep.
        numbers: The number of each job, from 1, by Hydra's number, from 0.
        in_worker: Whether jobs run in processes of their own.
    """

    folder: Path
    name: str
    swept: tuple[str, ...]
    n_jobs: int = 0
    numbers: tuple[int, ...] = ()
    in_worker: bool = False

    def write_settings(self, number: int, run: ComposedRun) -> None:
        """Write the checked settings of a job for the process that runs it."""
        settings, uri = to_plain(run), run.config.tracking.uri
        if file := sqlite_file(uri):  # Ray's workers may have another working folder
            _, mark, query = uri.partition("?")
            settings["config"]["tracking"]["uri"] = f"sqlite:///{file}{mark}{query}"
        if redact_uri(uri) != uri:  # a password gets to workers only through the environment
            settings["config"]["tracking"]["uri"] = ""
            os.environ["MLFLOW_TRACKING_URI"] = uri
        write_atomically(self.folder / f"{number}.settings.json", json.dumps(settings))

    def read_settings(self, number: int) -> ComposedRun:
        """Read the settings of a job."""
        text = (self.folder / f"{number}.settings.json").read_bytes()
        run: ComposedRun = from_plain(ComposedRun, json.loads(text))
        if not run.config.tracking.uri:
            if not os.environ.get("MLFLOW_TRACKING_URI"):
                problem = "the address of the record contains a password, so it is not passed on"
                raise TrackingError(f"{problem}; set MLFLOW_TRACKING_URI on each machine")
            run.config.tracking.uri = default_store()
        return run

    def read_outcome(self, number: int) -> JobOutcome:
        """Read the outcome of a job; it is waiting where it left none."""
        file = self.folder / f"{number}.json"
        if not file.is_file():
            return JobOutcome(JobState.waiting)
        outcome: JobOutcome = from_plain(JobOutcome, json.loads(file.read_bytes()))
        return outcome

    def write_outcome(self, number: int, outcome: JobOutcome) -> None:
        """Write the outcome of a job for the command."""
        write_atomically(self.folder / f"{number}.json", json.dumps(to_plain(outcome)))


@contextmanager
def _write_log(file: Path) -> Iterator[None]:
    """Inside, what is printed goes to a file."""
    with file.open("a") as log, redirect_stdout(log), redirect_stderr(log):
        yield


def run_sweep_job(sweep: SweepInfo, _: object, shared_base: SharedBase | None = None) -> None:
    """Run a job of a sweep and write its outcome; a job that fails stops no other.

    Hydra's launcher calls it for each job, in this process or in a worker. It also passes the job's
    config, which is not needed: the job finds its checked settings in the folder of the sweep.

    Args:
        sweep: What the sweep tells its jobs.
        shared_base: Keeps a base model for the jobs that follow in this process.

    Raises:
        KeyboardInterrupt: A signal came.
        SystemExit: submitit, a launcher, ends the process, and queues the job again.
    """
    number = sweep.numbers[HydraConfig.get().job.num]
    if sweep.read_outcome(number).is_over:
        return  # a launcher that lost a job may queue finished ones again
    outcome = JobOutcome(JobState.running)
    sweep.write_outcome(number, outcome)  # stays if this process dies: the job had begun

    def keep_run_id(run_id: str) -> None:
        """Write the id of the job's run as soon as it opens, so that it is known if it fails."""
        nonlocal outcome
        outcome = replace(outcome, run_id=run_id)
        sweep.write_outcome(number, outcome)

    began = time.monotonic()
    job = f"job {number} of {sweep.n_jobs}"
    time_left = "" if sweep.in_worker else _tell_time_left(sweep)
    console.show_line(f"{job}{time_left}")
    with _write_log(sweep.folder / f"{number}.log") if sweep.in_worker else nullcontext():
        try:
            ended = run_job(
                sweep.read_settings(number),
                RunInfo("", sweep=sweep.name, on_open=keep_run_id),
                sweep.swept,
                # Jobs of one process are alike: after the first one, all is described already.
                is_described=number != sweep.numbers[0] and not sweep.in_worker,
                shared_base=shared_base,
            )
            # A skipped job has the id of the equal run; a finished one has that of `keep_run_id`.
            outcome = replace(ended, run_id=ended.run_id or outcome.run_id)
        except BaseException as error:
            is_requeued = isinstance(error, SystemExit) and is_queued_again()
            if isinstance(error, KeyboardInterrupt) or is_requeued:
                # The job has not failed by itself: it is left to be run again.
                sweep.write_outcome(number, replace(outcome, state=JobState.killed))
                raise
            reason = _report_failure(job, error)
            outcome = replace(outcome, state=JobState.failed, reason=reason)
    sweep.write_outcome(number, replace(outcome, seconds=time.monotonic() - began))
    # A failure in this process is printed already; one in a worker stands only in its log.
    if outcome.state is not JobState.failed or sweep.in_worker:
        run_id = f"run {outcome.run_id[:8]}" if outcome.run_id else ""
        parts = filter(None, (outcome.state, run_id, outcome.headline))
        console.show_line(f"{job}: {', '.join(parts)}")
    if "torch" in sys.modules:  # for the next job in this process
        from slimdown.models.device_memory import release_memory

        release_memory()


def _report_failure(job: str, error: BaseException) -> str:
    """Print why a job failed, with a traceback if the program is at fault; return the reason."""
    changed = explain_library_change(error)
    reason = redact(changed or str(error))
    if not (changed or isinstance(error, SlimdownError)):
        reason = redact(describe_error(error))
        sys.stderr.write(redact(traceback.format_exc()))
    lines = [f"{job} failed:", *reason.splitlines(), *getattr(error, "__notes__", [])]
    sys.stderr.write(redact("\n  ".join(lines)) + "\n")
    return " ".join(reason.split())


def _tell_time_left(sweep: SweepInfo) -> str:
    """Say how long the jobs that are left take one after another, by those that are finished."""
    outcomes = [sweep.read_outcome(number) for number in sweep.numbers]
    seconds = [outcome.seconds for outcome in outcomes if outcome.state is JobState.finished]
    if not seconds:
        return ""
    n_left = sum(not outcome.is_over for outcome in outcomes)
    return f", about {format_duration(fmean(seconds) * n_left)} left in total"


def run_job(
    run: ComposedRun,
    info: RunInfo,
    swept: tuple[str, ...] = (),
    *,
    is_described: bool = False,
    shared_base: SharedBase | None = None,
) -> JobOutcome:
    """Make a run, unless an equal one is finished: one with the same `run_key`.

    Args:
        run: Its settings.
        info: The sweep, tags and `on_open`; the rest is filled in here.
        swept: The keys that a sweep varies; they come first in the run's name.
        is_described: Whether an earlier job of this process has shown what such a run does; then
            only this run's name is shown.
        shared_base: Keeps a base model for later runs of this process.

    Returns:
        The outcome: finished, without the run's id, which `info.on_open` got; or skipped, with the
        id of the equal run.

    Raises:
        SlimdownError: The run cannot be made, for a reason that the user can mend.
    """
    config = run.config
    check_store(config.tracking)
    key = run_key(config)
    waiting = "Another process is computing the same run; this one waits for it."
    say_wait = partial(console.show_line, waiting)
    with find_equal_run_and_lock(config, key, say_wait) as (finished, resume_run_id):
        if finished and finished.findings:
            # The other processes of accelerate wait in `assist_run` for the id of the run that they
            # assist. None tells them that there is no such run.
            broadcast_from_main(None)
            outcome = skip_finished(run, finished, swept)
            named = f" ({name_run(run, swept)})" if config.name else ""
            console.show_line(f"finished before: run {finished.run_id}{named}, {outcome.headline}")
            console.show_line("slimdown ui shows its page; rerun=true repeats it")
            return outcome
        info = replace(
            info,
            name=name_run(run, swept),
            tags={**info.tags, Tag.name: config.name or "", Tag.note: config.note or ""},
            overrides=run.overrides,
            shown=run.shown,
            run_key=key,
            resume_run_id=resume_run_id,
        )
        console.show_facts([("run", info.name)])
        from slimdown.models.base_model import fix_dtypes
        from slimdown.runs.experiment import run_experiment  # imports torch

        config = fix_dtypes(config)
        console.show_facts([] if is_described else describe_run(config).items())
        if resume_run_id:
            console.show_line(f"continues run {resume_run_id}, which was stopped")
            console.show_line(describe_kept(config, resume_run_id))
        findings = run_experiment(config, info, shared_base)
    return JobOutcome(JobState.finished, headline=describe_verdicts(findings))


def name_run(run: ComposedRun, swept: tuple[str, ...]) -> str:
    """Name a run by its settings, without secrets."""
    return redact_leaf(run_name(run.model, run.overrides, swept, run.config.name))


def skip_finished(run: ComposedRun, finished: RunRecord, swept: tuple[str, ...]) -> JobOutcome:
    """Return the outcome of a job whose run is in the record, which takes its name and note."""
    assert finished.findings
    rename_run(run.config.tracking, finished, name_run(run, swept), run.config)
    return JobOutcome(JobState.skipped, finished.run_id, describe_verdicts(finished.findings))


def measure_base_job(sweep: SweepInfo, _: object) -> None:
    """Measure the base of a job, so that jobs that start together find its answers.

    An error is left to the jobs: each of them meets it, too.
    """
    number = sweep.numbers[HydraConfig.get().job.num]
    with _write_log(sweep.folder / "base.log"):
        try:
            from slimdown.runs.experiment import measure_base

            measure_base(sweep.read_settings(number).config)
        except Exception as error:
            sys.stderr.write(redact(f"{error}\n"))
