"""Two models' scores on the same questions -> estimates with intervals, tests and what they could not have seen.

Pure functions of numbers (numpy and scipy). Everything is two-sided and at 95 % unless it says otherwise. Both models
answered the same questions, so what counts is each question's difference: the noise of which questions were asked
drops out, and a change is seen with far fewer of them than two independent scores would need.

Of scipy only `special`, which is loaded at its first use: `stats` has the same by name and takes half a second.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isinf, isnan, nan, sqrt
from typing import Protocol

import numpy as np
import scipy

from slimdown.stats.clusters import Drawn, Floats, population
from slimdown.stats.likelihood import Graded
from slimdown.stats.power import (
    POWER,
    in_standard_errors,
    questions_to_bound,
    questions_to_decide,
    smallest_shown,
)

ALPHA = 0.05
MCNEMAR, LIKELIHOOD, PAIRED_T, CLUSTERED_T = (
    "exact McNemar",
    "empirical likelihood",
    "paired t",
    "clustered t",
)
DUST = 1e-12  # a standard error below it is rounding: there is no spread


class OneSided(Protocol):
    """Tests of on which side of a threshold a change lies."""

    def p_value_above(self, threshold: float) -> float: ...
    def p_value_below(self, threshold: float) -> float: ...


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is."""

    value: float
    standard_error: (
        float  # nan where it cannot be had: fewer than two questions or clusters, no spread at all
    )
    low: float  # of the 95 % interval
    high: float


@dataclass(frozen=True)
class Table:
    """How many 0/1 scores changed."""

    lost: float  # right before, wrong after; half answers where a test corrects for continuity
    gained: float
    n: float  # of all answers

    def z(self, change: float, correction: float = 0.0) -> float:
        """The score statistic against a true change: Tango 1998; at 0 it is McNemar's.

        correction: answers added to what was gained, a half against the claim that is tested (for continuity).
        Positive where more was gained than `change` says. The chance of a loss is the likeliest one that such a change
        leaves, so unlike an estimate's own standard error it does not vanish where nothing was lost or gained.
        """
        excess = self.gained - self.lost - self.n * change + correction
        spread = self.spread(change)
        if spread == 0:
            return 0.0 if excess == 0 else (inf if excess > 0 else -inf)
        return excess / (spread * sqrt(self.n))

    def spread(self, change: float) -> float:
        """The standard deviation of one question's difference, if the true change were this."""
        return sqrt(max(0.0, 2 * self.chance_of_loss(change) + change * (1 - change)))

    def chance_of_loss(self, change: float) -> float:
        """The likeliest one, if the true change were this."""
        n, lost, gained = self.n, self.lost, self.gained
        linear = (2 * n - gained + lost) * change - gained - lost
        root = max(0.0, linear**2 + 8 * n * lost * change * (1 - change))
        return (sqrt(root) - linear) / (4 * n)


@dataclass(frozen=True)
class Difference(Estimate):
    """How the scores of the same questions differ between two models: after - before."""

    p_value: float  # that there is no change
    test: str  # what the p-value comes from: exact McNemar, empirical likelihood, paired t, or clustered t
    t_test_p_value: float  # the paired t-test of Mai 2025, beside it
    n: int
    table: Table | None  # of independent 0/1 scores
    graded: Graded | None  # of independent others between 0 and 1
    degrees_of_freedom: float
    n_groups: int  # subjects that the questions come from; 0 where they are of one kind
    largest: float  # the largest change that there could be: 1 where scores lie between 0 and 1, else infinite

    @property
    def population(self) -> str:
        """What is said here holds for: questions, or subjects, like these, or these subjects only."""
        return population(self.n_groups)

    def p_value_above(self, threshold: float) -> float:
        """How likely data like these are if the true change is `threshold` or less; one-sided."""
        if self.table:
            return float(scipy.special.ndtr(-self.table.z(threshold, -0.5)))
        if self.graded:
            return self.graded.p_value_above(threshold)
        return _tail((self.value - threshold) / self.standard_error, self.degrees_of_freedom)

    def p_value_below(self, threshold: float) -> float:
        """How likely data like these are if the true change is `threshold` or more; one-sided."""
        if self.table:
            return float(scipy.special.ndtr(self.table.z(threshold, 0.5)))
        if self.graded:
            return self.graded.p_value_below(threshold)
        return _tail((threshold - self.value) / self.standard_error, self.degrees_of_freedom)

    def equivalence_p_value(self, margin: float) -> float:
        """How likely data like these are if the true change is `margin` or more either way: two one-sided tests.

        Schuirmann 1987; for 0/1 scores with Tango's statistic, which keeps its 5 % where nothing was gained.
        """
        one, other = self.p_value_above(-margin), self.p_value_below(margin)
        return nan if isnan(one) else max(one, other)

    def minimum_detectable_change(self, alpha: float = ALPHA) -> float:
        """The smallest true change that as many questions would show at `POWER`; nan if they would show none.

        As many answers are taken to change as changed here, or as the change itself needs.
        """
        if self.table:
            return smallest_shown(
                self.n, (self.table.lost + self.table.gained + 1) / (self.n + 2), alpha
            )
        if (
            self.graded
        ):  # as far as its interval reaches, and as much smaller as a change may come out
            reach = max(abs(end - self.value) for end in interval(self.graded, alpha))
            smallest = reach + float(scipy.special.ndtri(POWER)) * self.standard_error
        else:
            smallest = in_standard_errors(alpha, self.degrees_of_freedom) * self.standard_error
        return smallest if smallest <= self.largest else nan

    def n_to_decide(self, margin: float, alpha: float = ALPHA) -> int | None:
        """About how many questions would show either the change or its absence, if it is as large as it looks here.

        None where it cannot be said: no standard error, or clusters, of which more would be needed and not only more
        questions.
        """
        continuity = 1.0 if self.table or self.graded else 0.0
        return self._more(questions_to_decide, margin, continuity, alpha)

    def n_to_bound(self, threshold: float) -> int | None:
        """About how many questions would show on which side of `threshold` the change lies, if it is as it looks here.

        None as for `n_to_decide`, and where the change lies too near the threshold for any number.
        """
        return self._more(questions_to_bound, threshold, ALPHA)

    def _more(self, needed: Callable[..., int | None], *further: float) -> int | None:
        if isnan(self.standard_error) or self.test == CLUSTERED_T:
            return None
        n = needed(self.value, self._spread, self._null_spread, *further)
        return max(self.n + 1, n) if n else None

    @property
    def _spread(self) -> float:
        """The standard deviation of one question's difference."""
        return self.standard_error * sqrt(self.n)

    def _null_spread(self, change: float, n: int) -> float:
        """The same, as a test of n questions against this change takes it."""
        if self.graded:  # with its half an answer
            return sqrt(self._spread**2 + 0.5 / n)
        if self.table is None:
            return self._spread
        return Table(self.table.lost + 1, self.table.gained + 1, self.n + 2).spread(change)


def mean(scores: Sequence[float] | Floats, clusters: Sequence[str] | None = None) -> Estimate:
    """The mean score with its standard error and interval.

    Args:
        scores: one a question.
        clusters: the group that each question belongs to; None where they are independent.

    The interval of 0/1 scores is Wilson's, with as many questions as independent ones would be as sure, and Student's
    quantile for the clusters; that of others Student's, within [0, 1] where all scores are. Graded scores without any
    spread have none.

    Raises:
        ValueError: no score, or one that is no number.

    >>> half = mean([1.0, 0.0, 1.0, 0.0])
    >>> round(half.value, 2), round(half.standard_error, 4), round(half.low, 4), round(half.high, 4)
    (0.5, 0.2887, 0.15, 0.85)
    """
    x = numbers(scores)
    drawn = Drawn.of(len(x), clusters)
    value, error = float(x.mean()), sqrt(drawn.variance(x))
    if not is_binary(x):
        return within(
            student(value, error, drawn.degrees_of_freedom), 0.0 if _are_shares(x) else -inf, 1.0
        )
    n, quantile = (
        float(len(x)),
        t_quantile(inf if drawn.member is None else drawn.degrees_of_freedom),
    )
    if drawn.member is not None and error > 0:
        n = min(n, value * (1 - value) / error**2)
    center, half = (
        value + quantile**2 / (2 * n),
        quantile * sqrt(value * (1 - value) / n + (quantile / n) ** 2 / 4),
    )
    scale = 1 + quantile**2 / n
    return Estimate(
        value, error, max(0.0, (center - half) / scale), min(1.0, (center + half) / scale)
    )


def difference(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    clusters: Sequence[str] | None = None,
) -> Difference:
    """How `after` differs from `before`, question by question.

    Args:
        before, after: one score a question, in the same order.
        clusters: the group that each question belongs to; None where they are independent.

    Independent 0/1 scores: exact McNemar test; standard error and interval of Bonett and Price 2012, with one question
    added to the lost and one to the gained, so that "nothing changed" of a few questions is not certainty. Other
    independent scores between 0 and 1: test and interval by `Graded`. Scores without bounds: paired t; without any
    spread nothing is known. Clusters: t with the standard error and the degrees of freedom of `Drawn`, the error never
    below that of independent 0/1 scores.

    Raises:
        ValueError: no score, or one that is no number, or unequal lengths.

    Of 10 questions 4 were lost and none gained; McNemar gives twice 0.5 to the fourth power:

    >>> d = difference([1] * 6 + [0] * 4, [1, 1] + [0] * 8)
    >>> d.value, d.p_value, round(d.low, 3), round(d.high, 3)
    (-0.4, 0.125, -0.686, 0.02)
    """
    x, y = numbers(before), numbers(after)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} scores before and {len(y)} after cannot be paired")
    d, drawn = y - x, Drawn.of(len(x), clusters)
    n, value = len(d), float(d.mean())
    counted = is_binary(x) and is_binary(y)
    table = Table(int((d < 0).sum()), int((d > 0).sum()), n)
    adjusted = _adjusted_error(table) if counted else 0.0
    largest = 1.0 if _are_shares(x) and _are_shares(y) else inf
    graded = Graded.of(d) if drawn.member is None and not counted and largest == 1 else None
    if drawn.member is None and counted:
        test, freedom = MCNEMAR, inf
        p_value = min(
            1.0,
            2
            * float(
                scipy.special.bdtr(min(table.lost, table.gained), table.lost + table.gained, 0.5)
            ),
        )
        center, half = (table.gained - table.lost) / (n + 2), t_quantile(inf) * adjusted
        around = Estimate(value, adjusted, center - half, center + half)
    elif graded:
        test, freedom, p_value = (
            LIKELIHOOD,
            drawn.degrees_of_freedom,
            p_value_of_none(value, graded),
        )
        around = Estimate(
            value,
            student(value, sqrt(drawn.variance(d)), freedom).standard_error,
            *interval(graded),
        )
    else:
        test, freedom = PAIRED_T if drawn.member is None else CLUSTERED_T, drawn.degrees_of_freedom
        around = student(value, max(sqrt(drawn.variance(d)), adjusted), freedom)
        p_value = _two_sided(value, around.standard_error, freedom)
    return Difference(
        **vars(within(around, -largest, largest)),
        p_value=p_value,
        test=test,
        t_test_p_value=_two_sided(value, sqrt(Drawn.of(n, None).variance(d)), n - 1),
        n=n,
        table=table if test == MCNEMAR else None,
        graded=graded,
        degrees_of_freedom=freedom,
        n_groups=drawn.n_groups,
        largest=largest,
    )


def mean_difference(differences: Sequence[Difference]) -> Estimate:
    """The mean of several benchmarks' differences, each with the same weight; nan for none.

    Benchmarks ask different questions, so their noise is independent. Student's interval, with Satterthwaite's degrees
    of freedom: those of a benchmark of a few subjects weigh as its noise does.
    """
    if not differences:
        return Estimate(nan, nan, nan, nan)
    k, variances = len(differences), [d.standard_error**2 for d in differences]
    value, error = sum(d.value for d in differences) / k, sqrt(sum(variances)) / k
    if isnan(error):
        return Estimate(value, nan, nan, nan)
    doubt = sum(v**2 / d.degrees_of_freedom for v, d in zip(variances, differences, strict=True))
    largest = sum(d.largest for d in differences) / k
    return within(
        student(value, error, sum(variances) ** 2 / doubt if doubt else inf), -largest, largest
    )


def p_value_of_none(change: float, tests: OneSided) -> float:
    """That there is no change, two-sided, by the test for the side on which the change lies."""
    if change == 0:
        return 1.0
    return min(1.0, 2 * (tests.p_value_above(0.0) if change > 0 else tests.p_value_below(0.0)))


def interval(tests: OneSided, alpha: float = ALPHA) -> tuple[float, float]:
    """Between which changes none is ruled out, of scores between 0 and 1; half of alpha for each end.

    From either end of what can be, the first change that is not; where looks contradict each other they may cross.
    """
    return _end(tests.p_value_above, -1.0, alpha / 2), _end(tests.p_value_below, 1.0, alpha / 2)


def _end(p_value: Callable[[float], float], out: float, alpha: float) -> float:
    kept = -out
    for _ in range(24):
        middle = (out + kept) / 2
        out, kept = (middle, kept) if p_value(middle) <= alpha else (out, middle)
    return out


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, corrected for there being several, by Holm 1979; nan stays nan.

    Holm and not Benjamini-Hochberg: a report's claims are read one by one, so the chance of even one false claim is
    what is held, and it is held however the benchmarks depend on each other.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not isnan(p))
    adjusted = [nan] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = highest
    return adjusted


def numbers(scores: Sequence[float] | Floats) -> Floats:
    """The scores as an array.

    Raises:
        ValueError: no score, or one that is no number.
    """
    x = np.asarray(scores, dtype=float)
    if len(x) == 0:
        raise ValueError("there is no question to compare")
    if n_bad := int((~np.isfinite(x)).sum()):
        raise ValueError(f"{n_bad} of {len(x)} scores are not numbers")
    return x


def is_binary(x: Floats) -> bool:
    """Whether every score is 0 or 1."""
    return bool(np.isin(x, (0.0, 1.0)).all())


def t_quantile(freedom: float) -> float:
    """How many standard errors Student's 95 % interval reaches to each side; nan without a degree of freedom."""
    return float(scipy.special.stdtrit(freedom, 1 - ALPHA / 2)) if freedom > 0 else nan


def student(value: float, error: float, freedom: float) -> Estimate:
    """Student's interval; without any spread there is none, and no standard error."""
    error = error if error > DUST else nan
    half = t_quantile(freedom) * error
    return Estimate(value, error, value - half, value + half)


def within(estimate: Estimate, lowest: float, highest: float) -> Estimate:
    """The estimate, its interval cut to what can be."""
    if isinf(lowest) or isnan(estimate.low):
        return estimate
    return replace(estimate, low=max(lowest, estimate.low), high=min(highest, estimate.high))


def _are_shares(x: Floats) -> bool:
    return bool(((x >= 0) & (x <= 1)).all())


def _two_sided(value: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return 2 * _tail(abs(value) / error, freedom)


def _tail(t: float, freedom: float) -> float:
    """The chance of a Student's t above this one; nan without a degree of freedom or a standard error."""
    return float(scipy.special.stdtr(freedom, -t)) if freedom > 0 else nan


def _adjusted_error(table: Table) -> float:
    lost, gained = (table.lost + 1) / (table.n + 2), (table.gained + 1) / (table.n + 2)
    return sqrt((lost + gained - (gained - lost) ** 2) / (table.n + 2))
