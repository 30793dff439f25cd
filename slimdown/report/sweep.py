"""A sweep as a whole: how far it is, what became of each job, and the table that it ends with."""

import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from math import nan
from pathlib import Path
from statistics import fmean

from slimdown.report import numbers
from slimdown.report.table import Cell, Column, Row, Table
from slimdown.stats.runs import RecordedChanges
from slimdown.stats.selection import MARK
from slimdown.utils.disk import whole_file
from slimdown.utils.redaction import redact


class State(StrEnum):
    finished = "finished"
    skipped = "skipped"  # an equal run is finished
    pruned = "pruned"  # by its search
    failed = "failed"
    interrupted = "interrupted"
    at_work = "at work"
    elsewhere = "made elsewhere"  # by another process, just now
    to_do = "still to do"


ENDS = (State.finished, State.skipped, State.pruned, State.failed)


@dataclass
class Job:
    """One run of a command, told what it becomes as it goes."""

    name: str  # what it sets that the other jobs set otherwise
    state: State = State.to_do
    experiment: str = ""  # of MLflow's, where it is recorded; known when it has begun
    run_id: str = ""
    owner: str = ""  # the process that makes the run, as the record has it
    what: str = ""  # what it found, or why it failed
    objective: float = nan  # mean change of the retained benchmarks
    log: str = ""  # the file with what it printed, where that is not the console
    began: float = 0.0  # in seconds since 1970
    seconds: float = nan  # that it took to be made

    def found(self, state: State, changes: RecordedChanges) -> None:
        """It has findings, its own or those of an equal run."""
        self.state, self.what = state, headline(changes)
        self.objective = changes.mean_retained_change.value


class Sweep:
    """The jobs of one command.

    A launcher's worker has a copy of its own, of which only its job comes back: as the value of the job, and in a file
    of the sweep's folder, which tells the command how far the job is, and what became of it where its process died.
    """

    def __init__(self, folder: Path) -> None:
        """Plan none yet; `folder` is the sweep's, by whose name its runs are known."""
        self.folder, self.name = (
            folder.absolute(),
            folder.name,
        )  # a search's runs are known by its study's
        self.in_process = (
            True  # whether jobs are made in the command's own process, one after the other
        )
        self.began = time.time() // 1  # in seconds since 1970, as runs' heartbeats
        self.environment: dict[str, str] = {}  # that workers elsewhere do not inherit
        self.owner = ""  # the command's process, as `Tag.owner` has it
        self.key = ""  # a digest of the jobs, or of a search, by which its run is found; empty: it has none
        self.before: set[str] = set()  # runs that earlier commands of a search have made
        self.swept: tuple[str, ...] = ()  # settings that have several values
        self.jobs: list[Job] = []
        # By the number that Hydra gives a job each time that it is launched: its own.
        self.launched: dict[int, int] = {}
        self._at_hand = self._last = 0

    def plan(self, jobs: Sequence[Sequence[str]], swept: Sequence[str]) -> None:
        """Have these jobs, each given by its overrides; `swept` are the keys of those that have several values."""
        self.swept = tuple(key.lstrip("+~") for key in swept)
        for job in jobs:
            own = [override.lstrip("+~") for override in job if override.partition("=")[0] in swept]
            self.jobs.append(
                Job(redact(re.sub(r"\\(.)", r"\1", " ".join(own))))
            )  # Hydra escapes a colon
        shutil.rmtree(
            self._files, ignore_errors=True
        )  # of a command before, in a folder that was named
        self._files.mkdir(parents=True)

    @property
    def title(self) -> str:
        """What its run is called."""
        return f"sweep of {', '.join(self.swept)}" if self.swept else "sweep"

    @property
    def _files(self) -> Path:
        return self.folder / ".jobs"

    def _file(self, number: int) -> Path:
        return self._files / f"{number}.json"

    @property
    def stop(self) -> Path:
        """A file that tells workers, wherever they are, to end what they are at and to begin nothing."""
        return self._files / "stop"

    def launch(self, numbers: Sequence[int]) -> int:
        """Have these jobs launched, or launched again; returns the number that Hydra shall give the first of them."""
        first, self._last = len(self.launched), numbers[-1]
        self.launched.update(enumerate(numbers, start=first))
        for number in numbers:
            self._file(number).unlink(missing_ok=True)
            self.jobs[number] = Job(
                self.jobs[number].name,
                run_id=self.jobs[number].run_id,
                owner=self.jobs[number].owner,
            )
        return first

    def begin(self, number: int) -> Job:
        """The job that Hydra gives this number, which begins now."""
        self._at_hand = self.launched[number]
        job = self.jobs[self._at_hand] = Job(
            self.jobs[self._at_hand].name, State.at_work, began=time.time()
        )
        return job

    def tell(self) -> None:
        """Write down what the job at hand is by now."""
        with suppress(OSError), whole_file(self._file(self._at_hand)) as file:
            file.write(json.dumps(asdict(self.jobs[self._at_hand])).encode())

    def hear(self) -> list[int]:
        """Read what workers wrote down; returns the jobs that ended since."""
        ended = []
        for number, job in enumerate(self.jobs):
            if job.state in ENDS:
                continue
            with suppress(OSError, ValueError):  # it has not begun
                told = json.loads(self._file(number).read_bytes())
                self.jobs[number] = Job(**{**told, "state": State(told["state"])})
                if self.jobs[number].state in ENDS:
                    ended.append(number)
        return ended

    def which(self, number: int) -> str:
        """A job, as it is called."""
        job = self.jobs[number]
        return f"job {number + 1} of {len(self.jobs)}" + (f", {job.name}" if job.name else "")

    @property
    def may_wait(self) -> bool:
        """Whether the job at hand waits for another process that makes an equal run: the last of those launched does.

        The others are put off, so that commands on several machines share the jobs.
        """
        return self._at_hand == self._last

    @property
    def at_hand(self) -> str:
        """Which job it is at."""
        return self.which(self._at_hand)

    def tally(self, finished: Collection[str] = ()) -> str:
        """How many jobs are done of how many; `finished` are runs of the sweep, which another command may have made."""
        ended = [job for job in self.jobs if job.state in ENDS]
        n_failed = sum(job.state is State.failed for job in ended)
        others = self.before.union(finished).difference(job.run_id for job in ended)
        n_done = len(ended) - n_failed + len(others)
        failed = f", {n_failed} failed" if n_failed else ""
        return f"{n_done} of {len(self.jobs) + len(self.before)} jobs done{failed}"

    @property
    def progress(self) -> str:
        """How far it is, and the time left where a job has been timed: the others take as long as these did."""
        at_work = [job for job in self.jobs if job.state is State.at_work]
        n_ended = sum(job.state in ENDS for job in self.jobs)
        where = (
            self.at_hand
            if self.in_process
            else f"{n_ended} of {len(self.jobs)} jobs done, {len(at_work)} at work"
        )
        if not (made := [job.seconds for job in self.jobs if job.seconds > 0]):
            return where
        each = fmean(made)
        left = sum(max(each - (time.time() - job.began), 0.0) for job in at_work)
        left += each * (len(self.jobs) - n_ended - len(at_work))
        return f"{where}, about {roughly(left / max(len(at_work), 1))} left"

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
            Row(
                (
                    Cell(f"{number}"),
                    Cell(job.name),
                    Cell(job.state),
                    Cell(job.run_id[:8]),
                    Cell(job.what),
                )
            )
            for number, job in enumerate(self.jobs, start=1)
        )
        counts = Counter(job.state for job in self.jobs)
        told = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
        if len(rows) > counts[State.finished] + counts[State.skipped] + counts[State.pruned]:
            told += "; the same command makes what is not finished"
        elif counts[State.skipped]:
            told += "; rerun=true makes again what was skipped"
        if counts[State.finished] + counts[State.skipped] > 1:
            told += f". Each verdict is its run's alone; python -m slimdown.compare says which hold among all ({MARK})"
        return Table("", columns, rows, f"{numbers.plural(len(rows), 'job')}: {told}.")


def headline(changes: RecordedChanges) -> str:
    """The verdicts of a run in short.

    >>> from slimdown.stats.paired import Estimate
    >>> from slimdown.stats.runs import RecordedChange
    >>> headline(RecordedChanges({"gsm8k": RecordedChange(Estimate(-0.031, 0.01, -0.05, -0.01), verdict="forgotten")}))
    'gsm8k −3.1 forgotten'
    """
    return ", ".join(
        f"{name} {numbers.points(change.change)[0]} {change.verdict}".rstrip()
        + (
            f" after {numbers.asked(change.n, change.n_available)}"
            if change.n < change.n_available
            else ""
        )
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
