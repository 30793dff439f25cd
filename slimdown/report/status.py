"""Where runs are: what goes on on which machine and how far, and what was left unfinished."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from slimdown.report import numbers
from slimdown.report.numbers import NOTHING
from slimdown.report.sweep import roughly
from slimdown.report.table import Cell, Column, Row, Table
from slimdown.stats.runs import RecordedRun


class Standing(StrEnum):
    going = "going"
    unknown = "going or gone"  # of an older version, which did not say who works on it
    gone = "gone"  # its process is, without having said so
    stopped = "stopped"
    failed = "failed"
    pruned = "pruned"  # by a search that had seen enough
    finished = "finished"


GOES_ON = (Standing.gone, Standing.stopped, Standing.failed)
_ADVICE = "The command of a run that is gone, stopped or failed goes on in it."


@dataclass(frozen=True)
class Whereabouts:
    """Where a run is, as the store has it."""

    run: RecordedRun
    standing: Standing
    host: str = ""  # of the process that works or worked on it
    at: str = ""  # how far it was when it was last heard of
    heard: float = 0.0  # then, in seconds since 1970; 0: never
    why: str = ""  # it failed
    sweep: str = ""  # the run of the sweep below which it is shown
    is_sweep: bool = False  # it holds the runs of a command


def status_table(found: Sequence[Whereabouts], where: str, kept: Mapping[Path, int]) -> Table:
    """What is not finished, a row a run and a sweep, and how many runs are.

    Args:
        found: of all runs, in the order in which they are shown.
        where: what was looked through.
        kept: the folders with unfinished work of runs, and how many bytes each takes.
    """
    said = [_ADVICE] if {one.standing for one in found} & {*GOES_ON} else []
    if n_bytes := sum(kept.values()):
        said.append(
            f"What runs go on from takes {numbers.size(n_bytes)} in {next(iter(kept)).parent}, a folder each; delete "
            "that of a run that shall not."
        )
    counts = Counter(one.standing for one in found if not one.is_sweep)
    told = ", ".join(
        f"{counts[standing]:,} {standing}" for standing in Standing if counts[standing]
    )
    columns = ("run", "name", "standing", "how far", "on", "since", "last heard of")
    widest = {"name": 50, "how far": 40}
    return Table(
        title=f"{numbers.plural(counts.total(), 'run')} of {where}" + (f": {told}" if told else ""),
        columns=tuple(Column(heading, widest=widest.get(heading)) for heading in columns),
        rows=tuple(_row(one) for one in found if one.standing is not Standing.finished),
        legend=" ".join(said),
    )


def _row(one: Whereabouts) -> Row:
    run, now = one.run, time.time()
    heard = f"{roughly(max(0.0, now - one.heard))} ago" if one.heard else NOTHING
    values: dict[str, object] = {
        "run_id": run.run_id,
        "experiment": run.experiment,
        "host": one.host,
        "at": one.at,
        "why": one.why,
        "kind": "sweep" if one.is_sweep else "tuned",
        "sweep": one.sweep or None,
    }
    values |= {
        "standing": one.standing.value,
        "started": run.started.isoformat(),
        "heard": one.heard or None,
    }
    return Row(
        (
            Cell(run.run_id[:8], values=values),
            Cell(f"└ {run.name}" if one.sweep else run.name, values={"name": run.name}),
            Cell(one.standing),
            Cell(one.why if one.standing is Standing.failed and one.why else one.at),
            Cell(one.host),
            Cell(f"{run.started.astimezone():%Y-%m-%d %H:%M}"),
            Cell(heard),
        )
    )
