"""Tables of plain records: the jobs of a sweep, the runs of a store, the sizes of a model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from slimdown.report.formatting import format_bytes, pluralize
from slimdown.report.tables import Table, make_table


@dataclass(frozen=True)
class JobRow:
    """One job of a sweep, as it is shown."""

    number: int  # from 1
    settings: str
    state: str
    run_id: str = ""
    outcome: str = ""  # its verdicts, or why it failed


@dataclass(frozen=True)
class RunStatus:
    """One recorded run, as it is shown."""

    run_id: str
    name: str
    experiment: str
    status: str  # FINISHED, FAILED, KILLED, RUNNING
    started: datetime
    text: str = ""  # how far it is, or why it failed


def sweep_table(jobs: Sequence[JobRow], notes: str = "") -> Table:
    """What became of each job of a sweep."""
    records = [vars(job) for job in jobs]
    counts = Counter(job.state for job in jobs)
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    summary = f"{pluralize(len(jobs), 'job')}: {states}."
    return make_table(
        "", records, {"run_id": lambda run_id: run_id[:8]}, f"{summary} {notes}".strip()
    )


def status_table(runs: Sequence[RunStatus], title: str = "", legend: str = "") -> Table:
    """Where each run of a store is."""
    records = [
        vars(run) | {"started": f"{run.started.astimezone():%Y-%m-%d %H:%M}"} for run in runs
    ]
    return make_table(title, records, {"run_id": lambda run_id: run_id[:8]}, legend)


def sizes_table(title: str, records: Sequence[Mapping[str, Any]], legend: str = "") -> Table:
    """What a model or a run takes; values under names that end in "bytes" are shown in GiB."""

    def format_plain(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"

    names = [
        name for name in (records[0] if records else ()) if not isinstance(records[0][name], str)
    ]
    formats = {n: format_bytes if n.endswith("bytes") else format_plain for n in names}
    return make_table(title, records, formats, legend)
