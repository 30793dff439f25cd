"""One benchmark's scores -> what may be said of them, asked all at once or in stages until something was known.

Whoever stops asking when the answers look clear has looked more than once, and intervals and tests made for one look
are then wrong. Of an evaluation with `stages` everything is said by `sequential.py`, which holds at whichever look it
ended, or not at all: what stopped where it did because of what it was has no standard error.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING

from slimdown.stats.paired import (
    ALPHA,
    Difference,
    Estimate,
    difference,
    interval,
    mean,
    mean_difference,
    within,
)
from slimdown.stats.ratio import forgetting_rate
from slimdown.stats.sequential import SequentialDifference, sequential_difference

if TYPE_CHECKING:  # it would bring pyarrow along
    from slimdown.evaluation.answers import BenchmarkEvaluation


def change_of(
    asked: "BenchmarkEvaluation", before: Sequence[float], after: Sequence[float]
) -> Difference:
    """How `after` differs from `before`, question by question; scores of the questions that `asked` holds.

    Raises:
        ValueError: as for `difference`.
    """
    if not asked.stages:
        return difference(before, after, asked.clusters)
    return sequential_difference(
        before, after, asked.clusters, asked.stages, asked.n_available or len(before)
    )


def without_error(d: Difference) -> Difference:
    """The same, in stages without what would hold only of a number of questions that was fixed beforehand."""
    return (
        replace(d, standard_error=nan, t_test_p_value=nan)
        if isinstance(d, SequentialDifference)
        else d
    )


def score_of(asked: "BenchmarkEvaluation", scores: Sequence[float]) -> Estimate:
    """The mean score with its interval, in stages that of the change from nothing.

    Raises:
        ValueError: as for `mean`.
    """
    if not asked.stages:
        return mean(scores, asked.clusters)
    from_none = change_of(asked, [0.0] * len(scores), scores)
    return within(Estimate(from_none.value, nan, from_none.low, from_none.high), 0.0, 1.0)


def rate_of(
    asked: "BenchmarkEvaluation", before: Sequence[float], after: Sequence[float], chance: float
) -> Estimate | None:
    """`forgetting_rate`; in stages, with every rate that base, tuned score and change do not rule out together.

    Each of the three is held to a third of the error. None where the base is not shown to be above `chance`.
    """
    if not asked.stages:
        return forgetting_rate(before, after, chance, asked.clusters)
    nothing, alpha = [0.0] * len(before), ALPHA / 3
    base, tuned = (
        within(_ends(change_of(asked, nothing, scores), alpha), 0.0, 1.0)
        for scores in (before, after)
    )
    change = _ends(change_of(asked, before, after), alpha)
    if not base.low > chance:
        return None
    had = (base.low - chance, base.high - chance)
    lows = max(min(1 - (tuned.high - chance) / b for b in had), min(-change.high / b for b in had))
    highs = min(max(1 - (tuned.low - chance) / b for b in had), max(-change.low / b for b in had))
    return Estimate(1 - (tuned.value - chance) / (base.value - chance), nan, lows, highs)


def mean_change(differences: Sequence[Difference]) -> Estimate:
    """`mean_difference`; where any was asked in stages, from intervals that all hold together (Bonferroni)."""
    if not any(isinstance(d, SequentialDifference) for d in differences):
        return mean_difference(differences)
    held = [_ends(d, ALPHA / len(differences)) for d in differences]
    value, low, high = (
        sum(getattr(one, end) for one in held) / len(held) for end in ("value", "low", "high")
    )
    return Estimate(value, nan, low, high)


def _ends(d: Difference, alpha: float) -> Estimate:
    """Every change that is not ruled out at `alpha`, either way; nan where a change may be of any size."""
    if d.largest != 1:
        return Estimate(d.value, nan, nan, nan)
    return Estimate(d.value, nan, *interval(d, alpha))
