"""Make tables of plain records: the jobs of a sweep, the runs of a store, the sizes of a model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from slimdown.report.formatting import format_bytes, pluralize
from slimdown.report.tables import Table, make_table


def runs_table(records: Sequence[Mapping[str, Any]], legend: str = "") -> Table:
    """Show one run or job in each row, with the beginning of its id.

    Args:
        records: One for each row; each has a `run_id`.
        legend: What stands below the table.
    """
    return make_table("", records, {"run_id": lambda run_id: run_id[:8]}, legend)


def sweep_table(jobs: Sequence[Mapping[str, Any]], notes: str = "") -> Table:
    """Show what became of each job of a sweep; each record has a `run_id` and a `state`."""
    counts = Counter(job["state"] for job in jobs)
    states = ", ".join(f"{n} {state}" for state, n in counts.items())
    return runs_table(jobs, legend=f"{pluralize(len(jobs), 'job')}: {states}. {notes}".strip())


def sizes_table(title: str, records: Sequence[Mapping[str, Any]], legend: str = "") -> Table:
    """Show what a model or a run takes; names that end in "bytes" hold bytes."""
    formats: dict[str, Any] = {}
    for name in records[0] if records else ():
        value = next((r[name] for r in records if r[name] is not None), None)
        if name.endswith("bytes"):
            formats[name] = format_bytes
        elif not isinstance(value, str):
            formats[name] = "{:,}".format if isinstance(value, int) else "{:.3g}".format
    return make_table(title, records, formats, legend)
