"""Which checkpoint of a training to take: the one that learned most within what it may lose."""

import re
from dataclasses import dataclass
from math import isnan

from slimdown.comparison.run_comparison import Comparison, Configuration
from slimdown.judging.budgets import default_budgets, keeps_budgets_as_measured

SETTING = "tuned"  # the setting that names a checkpoint's folder
_NUMBERED = re.compile(r"(.*?)(\d+)/?")


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint whose losses are within their budgets as measured.

    Attributes:
        row: Its run.
        step: The number of its folder.
        learned: The mean change of the targets, a share; nan where none was asked.
    """

    row: Configuration
    step: int
    learned: float


def read_steps(comparison: Comparison) -> list[int]:
    """Return the steps of checkpoints, one for each row; nothing if the rows are no such series.

    Folders of a series differ in the number at their end alone, as those of every trainer do.
    """
    folders = [_NUMBERED.fullmatch(row.settings.get(SETTING, "")) for row in comparison.rows]
    found = [folder for folder in folders if folder]
    is_series = len(found) == len(folders) > 1 and len({folder[1] for folder in found}) == 1
    steps = [int(folder[2]) for folder in found]
    return steps if is_series and len(set(steps)) == len(steps) else []


def choose_checkpoint(comparison: Comparison) -> ChosenCheckpoint | None:
    """Choose among checkpoints by what was measured; other questions have to confirm it.

    Args:
        comparison: A series of checkpoints of one training, a row each, see `read_steps`.

    Returns:
        Of the checkpoints whose measured losses are within their budgets, the one whose target
        benchmarks rose most, and of equal ones the earliest. If no target was asked, the last one.
        None if no checkpoint is within its budgets.
    """
    within = list[ChosenCheckpoint]()
    for row, step in zip(comparison.rows, read_steps(comparison), strict=True):
        changes_of_runs = [run.changes for run in row.runs]  # by benchmark
        if all(keeps_budgets_as_measured(c, default_budgets(c)) for c in changes_of_runs):
            within.append(ChosenCheckpoint(row, step, learned=row.target.value))
    if not within:
        return None
    within.sort(key=lambda checkpoint: checkpoint.step)
    if isnan(within[-1].learned):  # there is no target
        return within[-1]
    return max(within, key=lambda checkpoint: checkpoint.learned)  # of equals, it takes the first
