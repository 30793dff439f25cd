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
        comparison: A series, see `read_steps`.

    Returns:
        Of the checkpoints whose losses are within their budgets, the one whose targets rose most;
        without a target the last one. None where no checkpoint is within.
    """
    within = [
        ChosenCheckpoint(row, step, row.target.value)
        for row, step in zip(comparison.rows, read_steps(comparison), strict=True)
        if all(
            keeps_budgets_as_measured(run.changes, default_budgets(run.changes)) for run in row.runs
        )
    ]
    if not within:
        return None
    last = max(within, key=lambda checkpoint: checkpoint.step)
    if isnan(last.learned):  # there is no target
        return last
    within.sort(key=lambda checkpoint: checkpoint.step)  # of equals, the earliest is chosen
    return max(within, key=lambda checkpoint: checkpoint.learned)
