"""A paired difference that was looked at while its questions were still being asked -> tests valid whenever one stops.

Pure functions of numbers. Each look is tested as if it were the only one, by `paired.py`, and its p-value divided by
the look's share of the error; the shares of all looks sum to one, most of it kept for the last, at all questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan, log, nan

from slimdown.judging.clusters import Floats
from slimdown.judging.paired import ALPHA, Difference, difference, numbers

_EARLY = 0.25  # the share of the error that looks before the last have


@dataclass(frozen=True)
class SequentialDifference(Difference):
    """The difference of the answers so far; tests and interval hold at whichever look one stops."""

    looks: tuple[tuple[Difference, float], ...]  # each with its share of the error
    n_available: int  # questions, had all been asked

    @property
    def population(self) -> str:
        """As of a `Difference`, but of subjects for these only: how they differ was not waited for."""
        return f"these {self.n_groups} subjects" if self.n_groups else "questions like these"

    def p_value_above(self, threshold: float) -> float:
        """How likely data like these at any look are if the true change is `threshold` or less; one-sided."""
        return min(1.0, *(_known(look.p_value_above(threshold)) / share for look, share in self.looks))

    def p_value_below(self, threshold: float) -> float:
        """How likely data like these at any look are if the true change is `threshold` or more; one-sided."""
        return min(1.0, *(_known(look.p_value_below(threshold)) / share for look, share in self.looks))

    def minimum_detectable_change(self, alpha: float = ALPHA) -> float:
        """Of all questions at the last look, at the share of the error that is kept for it."""
        if len(self.looks) < 2 or self.n < self.n_available:
            return nan
        look, share = self.looks[-1]
        return look.minimum_detectable_change(alpha * share)

    def n_to_decide(self, margin: float, alpha: float = ALPHA) -> int | None:
        """About how many questions would show either the change or its absence; None where it cannot be said."""
        look, share = self.looks[-1]
        return look.n_to_decide(margin, alpha * share)


def sequential_difference(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    clusters: Sequence[str] | None,
    stages: Sequence[int],
    n_available: int,
) -> SequentialDifference:
    """How `after` differs from `before`, of questions that were asked in stages until something was known.

    Args:
        before, after: one score a question, in the order asked.
        clusters: the group that each question belongs to; None where they are of one kind. What is said holds for
            these groups, whose questions are taken to be dealt out in proportion.
        stages: how many had been asked each time that the answers were looked at; the last is all that were asked.
        n_available: of how many questions.

    Raises:
        ValueError: no score, or one that is no number, or unequal lengths, or stages that are not those of the scores.
    """
    x, y = numbers(before), numbers(after)
    if sorted({0, *stages, len(x)}) != [0, *stages] or len(x) > n_available:
        raise ValueError(f"stages {tuple(stages)} of {n_available} do not fit {len(x)} scores")
    spent = [_spent(n, n_available) for n in (0, *stages)]
    shares = [later - earlier for earlier, later in pairwise(spent)]
    looks = tuple((difference(x[:n], y[:n]), share) for n, share in zip(stages, shares, strict=True) if share > 0)
    now = difference(x, y)
    n_groups = len(set(clusters)) if clusters is not None else 0
    fields = {**vars(now), "n_groups": n_groups if n_groups > 1 else 0}
    found = SequentialDifference(**fields, looks=looks, n_available=n_available)
    p_value = min(1.0, 2 * (found.p_value_above(0.0) if now.value > 0 else found.p_value_below(0.0)))
    low, high = (_bound(found, side) for side in (1, -1))
    return SequentialDifference(**{**vars(found), "p_value": p_value, "low": min(low, high), "high": max(low, high)})


def _spent(n: int, n_available: int) -> float:
    """The share of the error that looks at up to n questions have together: even for each doubling, then the rest."""
    if n >= n_available:
        return 1.0
    return _EARLY * log(n + 1) / log(n_available + 1)


def _known(p_value: float) -> float:
    return 1.0 if isnan(p_value) else p_value


def _bound(found: SequentialDifference, side: int) -> float:
    """The end of the interval: the lowest change (side 1), or the highest (-1), that no look rules out."""
    test = found.p_value_above if side > 0 else found.p_value_below
    out, kept = -side * found.largest, side * found.largest
    if found.largest > 1:
        return nan
    for _ in range(24):
        middle = (out + kept) / 2
        out, kept = (middle, kept) if test(middle) <= ALPHA / 2 else (out, middle)
    return out
