"""Many runs looked at together -> which verdicts still hold, and how much luck the best of them has had.

A run's verdicts are held to 5 % by themselves: among thirty runs in which nothing changed, some will look as if it had.
And whoever picks the best picks the luckiest along with it. The cure is `holdout.py`; this says what is the matter.
"""

from collections.abc import Sequence
from math import isnan
from statistics import NormalDist

from slimdown.stats.changes import verdict
from slimdown.stats.paired import holm
from slimdown.stats.runs import RecordedRun

MARK = "†"  # of a verdict that does not hold among all the others


def luck_of_the_best(n: int) -> float:
    """By how many standard errors the best of `n` equally good candidates is expected to look better than it is.

    Blom 1958, for independent errors; where all are wrong on the same questions it is less.

    >>> [round(luck_of_the_best(n), 2) for n in (1, 2, 30)]
    [0.0, 0.59, 2.04]
    """
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def corrected_verdicts(runs: Sequence[RecordedRun]) -> dict[tuple[str, str], str]:
    """By run and benchmark, what is left of its verdict when all of them are corrected for (Holm).

    As within a run, claims of change and of no change apart: the chance of any false claim of either kind is at most
    5 %, however the runs depend on each other. Older records hold p-values that are corrected within the run already;
    these are taken as they are, which is on the safe side.
    """
    cells = [(run, name, change) for run in runs for name, change in run.changes.benchmarks.items()]
    changed = holm([_known(change.p_value_raw, change.p_value) for _, _, change in cells])
    unchanged = holm(
        [
            _known(change.equivalence_p_value_raw, change.equivalence_p_value)
            for _, _, change in cells
        ]
    )
    corrected = {}
    for (run, name, change), p_value, equivalence in zip(cells, changed, unchanged, strict=True):
        left = verdict(change.change.value, p_value, equivalence)
        corrected[run.run_id, name] = (
            left.value if change.verdict and len(runs) > 1 else change.verdict
        )
    return corrected


def _known(value: float, otherwise: float) -> float:
    return otherwise if isnan(value) else value
