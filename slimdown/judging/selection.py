"""Many runs looked at together -> which verdicts still hold, and how much luck the best of them has had.

A run's verdicts are held to 5 % by themselves: among thirty runs in which nothing changed, some will look as if it had.
And whoever picks the best picks the luckiest along with it. The cure is `holdout.py`; this says what is the matter.
"""

from collections.abc import Iterator, Sequence
from math import isfinite, isnan
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING

from slimdown.judging.changes import Verdict, verdict
from slimdown.judging.paired import holm

if TYPE_CHECKING:
    from slimdown.judging.comparison import Configuration
    from slimdown.judging.runs import RecordedRun

MARK = "†"  # of a verdict that does not hold among all the others


def luck_of_the_best(n: int) -> float:
    """By how many standard errors the best of `n` equally good candidates is expected to look better than it is.

    Blom 1958, for independent errors; where all are wrong on the same questions it is less.

    >>> [round(luck_of_the_best(n), 2) for n in (1, 2, 30)]
    [0.0, 0.59, 2.04]
    """
    return NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def corrected_verdicts(runs: "Sequence[RecordedRun]") -> dict[tuple[str, str], str]:
    """By run and benchmark, what is left of its verdict when all of them are corrected for (Holm).

    As within a run, claims of change and of no change apart: the chance of any false claim of either kind is at most
    5 %, however the runs depend on each other. Older records hold p-values that are corrected within the run already;
    these are taken as they are, which is on the safe side.
    """
    cells = [(run, name, change) for run in runs for name, change in run.changes.benchmarks.items()]
    changed = holm([_known(change.p_value_raw, change.p_value) for _, _, change in cells])
    unchanged = holm([_known(change.equivalence_p_value_raw, change.equivalence_p_value) for _, _, change in cells])
    corrected = {}
    for (run, name, change), p_value, equivalence in zip(cells, changed, unchanged, strict=True):
        left = verdict(change.change.value, p_value, equivalence)
        corrected[run.run_id, name] = left.value if change.verdict and len(runs) > 1 else change.verdict
    return corrected


def _known(value: float, otherwise: float) -> float:
    return otherwise if isnan(value) else value


def corrections(rows: "Sequence[Configuration]") -> Iterator[str]:
    """What the correction for the whole table changes, in a sentence."""
    cells = [cell for row in rows for cell in row.changes.values()]
    n_all = sum(cell.verdicts.total() for cell in cells)
    n_said = n_all - sum(cell.verdicts[Verdict.undecided.value] for cell in cells)
    n_lost = sum((cell.verdicts - cell.corrected).total() for cell in cells)
    if sum(len(row.runs) for row in rows) < 2 or not n_said:
        return
    together = f"corrected for all {n_all:,} in this table (Holm)"
    if n_lost:
        yield (
            f"{MARK} {n_lost:,} of {n_said:,} verdicts other than undecided do not hold when {together}; what does "
            "stands behind the arrow."
        )
    else:
        yield f"Every verdict other than undecided holds when {together}."


def choosing(rows: "Sequence[Configuration]") -> Iterator[str]:
    """What picking the best row does, and what to do about it, in a sentence each."""
    n = len(rows)
    errors: dict[str, list[float]] = {}
    for row in rows:
        for name, cell in row.changes.items():
            if isfinite(cell.change.standard_error):
                errors.setdefault(name, []).append(cell.change.standard_error)
    if n < 2 or not errors:
        return
    luck = 100 * luck_of_the_best(n) * max(map(fmean, errors.values()))
    cure = "python -m slimdown.compare RUN --confirm"
    if all(run.holdout for row in rows for run in row.runs):
        advice = f"Judge the one you choose on the questions that are held out: {cure}"
    else:
        advice = f"Runs with evaluation.holdout=0.5 keep questions to judge the chosen one on: {cure}"
    yield (
        f"Whoever picks the best of these {n:,} picks luck too: of {n:,} that are equally good, the best looks up to "
        f"about {luck:.1f} points better than it is on one benchmark. {advice}."
    )
