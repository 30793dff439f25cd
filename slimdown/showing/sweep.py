"""A sweep as a whole: how far it is, what became of each job, and the table that it ends with."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import nan
from pathlib import Path
from statistics import median

from slimdown.guarding.redaction import redact
from slimdown.judging.runs import RecordedChanges
from slimdown.showing import numbers
from slimdown.showing.table import Cell, Column, Row, Table


class State(StrEnum):
    finished = "finished"
    skipped = "skipped"  # an equal run is finished
    failed = "failed"
    interrupted = "interrupted"
    to_do = "still to do"


@dataclass
class Job:
    """One run of a command, told what it becomes as it goes."""

    name: str  # what it sets that the other jobs set otherwise
    state: State = State.to_do
    run_id: str = ""
    what: str = ""  # what it found, or why it failed
    objective: float = nan  # mean change of the retained benchmarks

    def found(self, state: State, changes: RecordedChanges) -> None:
        """It has findings, its own or those of an equal run."""
        self.state, self.what = state, headline(changes)
        self.objective = changes.mean_retained_change.value


class Sweep:
    """The jobs of one command. A launcher's worker has a copy of its own, of which only its job comes back."""

    def __init__(self, folder: Path) -> None:
        """Plan none yet; `folder` is the sweep's, by whose name its runs are known."""
        self.folder = folder
        self.in_process = True  # whether jobs are made in the command's own process, one after the other
        self.began = time.time() // 1  # in seconds since 1970, as runs' heartbeats
        self.swept: tuple[str, ...] = ()  # settings that have several values
        self.jobs: list[Job] = []
        self._number, self._job_began = 0, 0.0  # of the job at hand
        self._seconds: list[float] = []  # of the jobs that were made

    def plan(self, jobs: Sequence[Sequence[str]], swept: Sequence[str]) -> None:
        """Have these jobs, each given by its overrides; `swept` are the keys of those that have several values."""
        self.swept = tuple(key.lstrip("+~") for key in swept)
        for job in jobs:
            own = [override.lstrip("+~") for override in job if override.partition("=")[0] in swept]
            self.jobs.append(Job(redact(re.sub(r"\\(.)", r"\1", " ".join(own)))))  # Hydra escapes a colon

    def begin(self, number: int) -> Job:
        """The job of this number, counted from 0, which begins now and ends the one before."""
        self._number, self._job_began = number, time.monotonic()
        return self.jobs[number]

    def end(self) -> None:
        """The job at hand has ended."""
        if self.jobs[self._number].state is State.finished:
            self._seconds.append(time.monotonic() - self._job_began)

    @property
    def at_hand(self) -> str:
        """Which job it is at."""
        job = self.jobs[self._number]
        return f"job {self._number + 1} of {len(self.jobs)}" + (f", {job.name}" if job.name else "")

    @property
    def progress(self) -> str:
        """Which job it is at, and the time left where a job has been timed."""
        if not self._seconds:
            return self.at_hand
        left = median(self._seconds) * (len(self.jobs) - self._number) - (time.monotonic() - self._job_began)
        return f"{self.at_hand}, about {roughly(max(left, 0.0))} left"

    def table(self) -> Table:
        """What became of each job: finished, skipped, failed and why, and what is still to do."""
        columns = (
            Column("job", is_number=True),
            Column("settings", widest=40),
            Column("state"),
            Column("run"),
            Column("what became of it", widest=60),
        )
        rows = tuple(
            Row((Cell(f"{number}"), Cell(job.name), Cell(job.state), Cell(job.run_id[:8]), Cell(job.what)))
            for number, job in enumerate(self.jobs, start=1)
        )
        counts = Counter(job.state for job in self.jobs)
        told = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
        if len(rows) > counts[State.finished] + counts[State.skipped]:
            told += "; the same command makes what is not finished"
        elif counts[State.skipped]:
            told += "; rerun=true makes again what was skipped"
        return Table("", columns, rows, f"{numbers.plural(len(rows), 'job')}: {told}.")


def headline(changes: RecordedChanges) -> str:
    """The verdicts of a run in short.

    >>> from slimdown.judging.paired import Estimate
    >>> from slimdown.judging.runs import RecordedChange
    >>> headline(RecordedChanges({"gsm8k": RecordedChange(Estimate(-0.031, 0.01, -0.05, -0.01), verdict="forgotten")}))
    'gsm8k −3.1 forgotten'
    """
    return ", ".join(
        f"{name} {numbers.points(change.change)[0]} {change.verdict}".rstrip()
        for name, change in changes.benchmarks.items()
    )


def roughly(seconds: float) -> str:
    """Seconds that are not known well, in one unit.

    >>> roughly(34), roughly(840), roughly(10_000)
    ('30 s', '14 min', '2.8 h')
    """
    if seconds < 90:
        return f"{10 * round(seconds / 10)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
