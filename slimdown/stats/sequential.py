"""A paired difference that was looked at while its questions were still being asked -> tests valid whenever one stops.

Pure functions of numbers. Of the error, two fifths are kept for the last look, at all questions and by today's full
test, so that who gets there is told nearly what it says; the rest is shared among the looks before it, each of which
tests by a ratio of likelihoods. The smallest p-value, each divided by its look's share, has under no change a
distribution that follows from how many questions the looks have in common (Armitage, McPherson and Rowe 1969), and what
is said is its chance. docs/studies/sequential.md has what else was tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import copysign, exp, inf, isnan, log, nan, pi, sqrt

import numpy as np
import scipy

from slimdown.evaluation.order import stages_of
from slimdown.stats.clusters import Floats
from slimdown.stats.likelihood import Graded
from slimdown.stats.paired import (
    ALPHA,
    Difference,
    OneSided,
    Table,
    difference,
    interval,
    numbers,
    p_value_of_none,
)

AT_EACH_LOOK, AT_THE_END = "likelihood ratio at each look", "paired t at the end"
_EARLY = 0.6  # the share of the error for the looks before all are asked
_MIDDLE, _WIDTH = 1300, 1.0  # questions, and in logarithms: the bell by which these looks share it
_TOO_NEAR = 1.05  # a look that adds fewer than a twentieth is taken as if it had nothing in common with the one before
_FAR = 9.0  # standard errors below which nothing lies
_LOG_RATIOS = np.linspace(log(1e-15), 0.0, 60)


@dataclass(frozen=True)
class _Counts:
    """How much less likely a change makes these counts than the likeliest would, as a standard normal number.

    The signed root of the likelihood ratio, half an answer added against the claim: what `Graded` says of such answers,
    written out, since it is asked a thousand times a benchmark. Where Tango's score, which is as
    good at 5 %, is far in a tail, this is nearer to the truth: not too shy, and too eager only where nothing at all was
    lost or nothing gained, by two fifths at most.
    """

    lost: int
    gained: int
    n: int

    def p_value_above(self, threshold: float) -> float:
        return float(
            scipy.special.ndtr(
                -self._root(Table(self.lost + 0.5, self.gained, self.n + 0.5), threshold)
            )
        )

    def p_value_below(self, threshold: float) -> float:
        return float(
            scipy.special.ndtr(
                self._root(Table(self.lost, self.gained + 0.5, self.n + 0.5), threshold)
            )
        )

    def _root(self, table: Table, change: float) -> float:
        lost = max(table.chance_of_loss(change), -change, 0.0)
        shares = (lost, lost + change, 1 - 2 * lost - change)
        counts = (table.lost, table.gained, table.n - table.lost - table.gained)
        if any(count > 0 and share <= 0 for count, share in zip(counts, shares, strict=True)):
            nats = inf
        else:
            pairs = zip(counts, shares, strict=True)
            nats = sum(count * log(count / (table.n * share)) for count, share in pairs if count)
        return copysign(sqrt(2 * max(0.0, nats)), table.gained - table.lost - table.n * change)


@dataclass(frozen=True)
class _Full:
    """Today's test of all questions; that of no change is exact for 0/1 scores, as it is there."""

    difference: Difference

    def p_value_above(self, threshold: float) -> float:
        d = self.difference
        return (
            d.p_value_above(threshold)
            if threshold or not d.table
            else _mcnemar(d.table.lost, d.table)
        )

    def p_value_below(self, threshold: float) -> float:
        d = self.difference
        return (
            d.p_value_below(threshold)
            if threshold or not d.table
            else _mcnemar(d.table.gained, d.table)
        )


def _mcnemar(count: float, table: Table) -> float:
    """How likely so few of all that were lost or gained are one of the two, by equal chances."""
    return float(scipy.special.bdtr(count, int(table.lost + table.gained), 0.5))


@dataclass(frozen=True)
class SequentialDifference(Difference):
    """The difference of the answers so far; tests and interval hold at whichever look one stops.

    The standard error, the paired t-test of Mai 2025 and its degrees of freedom are of these answers as if they were
    all that had ever been meant to be asked.
    """

    looks: tuple[tuple[OneSided, float], ...]  # each with its share of the error
    plan: tuple[
        int, ...
    ]  # of questions at all looks, past and to come; empty: the shares are simply added up
    n_available: int  # questions, had all been asked

    @property
    def population(self) -> str:
        """As of a `Difference`, but of subjects for the benchmark's alone, asked by now or not."""
        return "these subjects alone" if self.n_groups else "questions like these"

    def p_value_above(self, threshold: float) -> float:
        """How likely data like these at any look are if the true change is `threshold` or less; one-sided."""
        return self._chance(
            [_known(look.p_value_above(threshold)) / share for look, share in self.looks]
        )

    def p_value_below(self, threshold: float) -> float:
        """How likely data like these at any look are if the true change is `threshold` or more; one-sided."""
        return self._chance(
            [_known(look.p_value_below(threshold)) / share for look, share in self.looks]
        )

    def minimum_detectable_change(self, alpha: float = ALPHA) -> float:
        """The smallest true change that this look would show at `POWER`; nan if it would show none."""
        return super().minimum_detectable_change(alpha * self.looks[-1][1]) if self.looks else nan

    def n_to_decide(self, margin: float, alpha: float = ALPHA) -> int | None:
        """About how many questions would show either the change or its absence, if it is as large as it looks here.

        None where it cannot be said.
        """
        return super().n_to_decide(margin, alpha * _EARLY)

    def _chance(self, ratios: Sequence[float]) -> float:
        """How likely a p-value is to be as small, against its look's share, as the smallest of these, at any look."""
        ratio = min(ratios, default=1.0)
        if not self.plan or ratio == 0:
            return min(1.0, ratio)
        least, most = _LOG_RATIOS[0], _LOG_RATIOS[-1]
        known = min(max(log(ratio), least), most)
        return min(
            1.0, ratio * exp(float(np.interp(known, _LOG_RATIOS, _log_chances(self.plan))) - known)
        )


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

    Scores that may lie anywhere are tested once, when all questions were asked.

    Raises:
        ValueError: no score, or one that is no number, or unequal lengths, or stages that are not those of the scores.
    """
    x, y = numbers(before), numbers(after)
    if sorted({0, *stages, len(x)}) != [0, *stages] or len(x) > n_available:
        raise ValueError(f"stages {tuple(stages)} of {n_available} do not fit {len(x)} scores")
    now, n = difference(x, y), len(x)
    looks: list[tuple[OneSided, float]] = []
    plan: tuple[int, ...] = ()
    if now.table or now.graded:
        plan = tuple(sorted({*stages, *(stage for stage in stages_of(n_available) if stage > n)}))
        shares = dict(zip(plan, _shares(plan), strict=True))
        seen = _counts if now.table else Graded.of
        looks = [
            (seen(y[:stage] - x[:stage]), shares[stage]) for stage in stages if stage < n_available
        ]
    if n == n_available:
        looks.append((_Full(now), 1 - sum(share for _, share in looks)))
    n_groups = len(set(clusters)) if clusters is not None else 0
    fields = {
        **vars(now),
        "n_groups": n_groups if n_groups > 1 else 0,
        "test": AT_EACH_LOOK if plan else AT_THE_END,
    }
    found = SequentialDifference(**fields, looks=tuple(looks), plan=plan, n_available=n_available)
    low, high = sorted(interval(found))
    if found.largest > 1:
        low = high = nan
    return replace(found, p_value=p_value_of_none(found.value, found), low=low, high=high)


def _counts(differences: Floats) -> _Counts:
    return _Counts(int((differences < 0).sum()), int((differences > 0).sum()), len(differences))


def _shares(plan: tuple[int, ...]) -> list[float]:
    """Of the error, for each look: `_EARLY` to those before the last, most where a change of few points is decided."""
    before = scipy.special.ndtr(np.log(np.array(plan) / _MIDDLE) / _WIDTH)
    spent = [float(_EARLY * one / before[-1]) for one in before[:-1]]
    return [later - earlier for earlier, later in pairwise([0.0, *spent, 1.0])]


@lru_cache(maxsize=64)
def _log_chances(plan: tuple[int, ...]) -> Floats:
    """Of each ratio, how likely any look's p-value is to be that small against its share, where nothing changed."""
    shares = np.array(_shares(plan))
    return np.log([_chance_of_any(np.exp(ratio) * shares, plan) for ratio in _LOG_RATIOS])


def _chance_of_any(levels: Floats, plan: tuple[int, ...]) -> float:
    """How likely a mean that is normal at each look is to be beyond the level of any, if nothing changed."""
    nodes, weights = _gauss()
    total = last = 0.0
    z = mass = np.zeros(0)
    for n, level, bound in zip(
        plan, levels, np.maximum(-scipy.special.ndtri(levels), 1 - _FAR), strict=True
    ):
        if last and n < _TOO_NEAR * last:
            total += float(level)
            continue
        half = (bound + _FAR) / 2
        below = (
            half * (nodes + 1) - _FAR
        )  # where the mean may be, in standard errors, without being beyond
        if not last:
            total, mass = float(level), _density(below) * weights * half
        else:
            kept = sqrt(last / n)
            spread = sqrt(1 - kept**2)
            total += float(mass @ scipy.special.ndtr((kept * z - bound) / spread))
            mass = _density((below[:, None] - kept * z) / spread) @ mass / spread * weights * half
        z, last = below, n
    return min(1.0, total)


@lru_cache
def _gauss() -> tuple[Floats, Floats]:
    """Where, between -1 and 1, to look at a function, and with what weight, to have its integral (Legendre)."""
    return np.polynomial.legendre.leggauss(96)  # type: ignore[no-any-return]


def _density(z: Floats) -> Floats:
    return np.exp(-(z**2) / 2) / sqrt(2 * pi)


def _known(p_value: float) -> float:
    return 1.0 if isnan(p_value) else p_value
