"""Compare two models' scores of the same questions, by one test and its inversion.

Everything is two-sided and at 95 % unless it says otherwise. Both models answer the same questions,
so each question's difference counts: a change is seen with far fewer questions than two independent
scores need. Where the questions come from several subjects (the tasks of a group), an estimate is
about these subjects alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isnan, nan, sqrt

import numpy as np
import scipy

from slimdown.stats.likelihood import ALPHA, EmpiricalLikelihoodTest
from slimdown.stats.sequential import Floats, block_ends


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is."""

    value: float
    standard_error: float  # nan without spread, and after an evaluation that stopped early
    low: float  # of the 95 % interval
    high: float


@dataclass(frozen=True)
class Sampling:
    """The sampling of a benchmark's questions, and the looks at their answers."""

    # [n], with a mean of 1 over all questions; None: all clusters weigh the same, and without
    # clusters all questions
    weights: Floats | None = field(default=None, repr=False, compare=False)
    looks: tuple[int, ...] = ()  # questions answered by each look; empty: one look, at the end
    n_available: int | None = None  # questions in all, asked or not
    n_subjects: int = 0  # subjects of the questions; 0: questions of one kind
    # Questions to come may weigh more than those of `weights`: the largest weight of all, asked or
    # not. 1.0 where none is to come.
    largest_weight: float = 1.0
    n_skipped_looks: int = 0  # looks that lack a weighted task's answers, so they claim nothing
    # [n], the number of each question's cluster, such as its passage, or of the document of which
    # it is a copy; None: questions are independent. A cluster is one observation, the mean of its
    # questions, and weighs as much as any other: the claim is about clusters.
    clusters: Floats | None = field(default=None, repr=False, compare=False)

    @property
    def is_simple(self) -> bool:
        """Whether all questions are of one kind and weigh the same."""
        weighs_alike = self.weights is None or bool(np.ptp(self.weights) < 1e-9)
        return weighs_alike and not self.n_subjects

    def to_observations(self, columns: Sequence[Floats]) -> tuple[list[Floats], Floats]:
        """Return the independent observations (questions or cluster means) and their weights.

        Args:
            columns: [n] each, a number for each question.

        Returns:
            The columns, with one number for each observation, and the weights, whose mean is 1.
            Without weights of questions, clusters weigh the same; with them, a cluster weighs as
            much as its questions together.
        """
        n = len(columns[0])
        weights = np.ones(n) if self.weights is None else self.weights
        if self.clusters is None:
            return list(columns), weights
        numbers = np.unique(self.clusters, return_inverse=True)[1]  # of each question's cluster
        cluster_weights = np.bincount(numbers, weights).astype(float)  # sums of question weights
        means = [np.bincount(numbers, weights * column) / cluster_weights for column in columns]
        if self.weights is None:
            return means, np.ones(len(cluster_weights))
        # Question weights have a sum of n. Scaled in this way, cluster weights have a mean of 1.
        return means, cluster_weights * (len(cluster_weights) / n)

    def weigh_questions(self, n: int) -> Floats:
        """Return the weight of each of `n` questions; their mean is 1 over all questions."""
        if self.weights is not None:
            return self.weights
        if self.clusters is None:
            return np.ones(n)
        _, numbers, sizes = np.unique(self.clusters, return_inverse=True, return_counts=True)
        return np.asarray(n / (len(sizes) * sizes[numbers]))

    def build_test(
        self, columns: Sequence[Floats], lowest: float, highest: float
    ) -> tuple[Floats, Floats, EmpiricalLikelihoodTest]:
        """Build the test of the first column's weighted mean, from counts of equal observations.

        So for changes of 0/1 answers, the test has three numbers, however many answers there are.

        Args:
            columns: [n] each, a number for each question. Observations are equal if they have the
                same number in each column, and the same weight.
            lowest, highest: The bounds of the first column's numbers.

        Returns:
            The distinct observations, [columns, k], their weights, [k], and the test. The test's
            `counts`, [looks, k], say how often each look has seen each of them.
        """
        observations, weights = self.to_observations(columns)
        # The weights are one more row here, so observations of different weights stay apart.
        distinct_rows, places = np.unique([*observations, weights], axis=1, return_inverse=True)
        distinct, distinct_weights = distinct_rows[:-1], distinct_rows[-1]
        n, k = len(weights), len(distinct_weights)
        # A look is a number of questions. Each of them is one observation, because `pair_benchmark`
        # refuses looks at questions of clusters.
        looks = self.looks or (n,)
        counts = [np.bincount(places.ravel()[:look], minlength=k) for look in looks]
        plan: tuple[int, ...] = ()
        if self.looks:  # they share the error with the looks to come
            plan = (*self.looks, *(look for look in block_ends(self.n_available or n) if look > n))
        # Weighted numbers are tested, so the bounds are weighted, too.
        largest_weight = max(self.largest_weight, float(weights.max()))
        test = EmpiricalLikelihoodTest(
            values=distinct_weights * distinct[0],
            counts=np.array(counts, dtype=float),
            lowest=largest_weight * lowest,
            highest=largest_weight * highest,
            plan=plan,
            n_skipped_looks=self.n_skipped_looks,
        )
        return distinct, distinct_weights, test


@dataclass(frozen=True)
class Difference(Estimate):
    """The difference between two models on the same questions: tuned - base, shares of 1."""

    p_value: float  # of no change
    mcnemar_p_value: float  # exact, for 0/1 scores; nan for other scores, looks and clusters
    n: int  # questions
    sampling: Sampling
    is_binary: bool  # whether all scores are 0 or 1
    changes: Floats = field(repr=False, compare=False)  # [n], the change of each question
    # Results of `equivalence_p_value` by margin; recorded, since each takes a millisecond.
    equivalence: dict[float, float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def estimate(self) -> Estimate:
        """The number and its interval alone."""
        return Estimate(self.value, self.standard_error, self.low, self.high)

    @cached_property
    def test(self) -> EmpiricalLikelihoodTest:
        """The test against a margin or a budget; see `added_to_margin` for 0/1 answers."""
        _, _, test = self.sampling.build_test([self.changes], lowest=-1.0, highest=1.0)
        is_whole = bool(np.isin(test.values, (-1.0, 0.0, 1.0)).all())  # and so of no mixed cluster
        is_margin = self.is_binary and self.sampling.is_simple and is_whole
        return replace(test, is_margin=is_margin)

    @cached_property
    def change_test(self) -> EmpiricalLikelihoodTest:
        """The test of any change; see `added_to_change` for 0/1 answers."""
        if self.is_binary and self.sampling.is_simple:
            return self.test.of_change(self.test.values != 0)
        return self.test

    @cached_property
    def observations(self) -> Floats:
        """One number for each independent question or cluster; their plain mean is the change."""
        (changes,), weights = self.sampling.to_observations([self.changes])
        return changes * weights

    @property
    def largest_change(self) -> float:
        """The largest change of one observation that is possible."""
        weights = self.sampling.to_observations([self.changes])[1]
        return max(self.sampling.largest_weight, float(weights.max()))

    @property
    def has_independent_answers(self) -> bool:
        """Whether each observation is one answer that is right or wrong."""
        return self.is_binary and self.sampling.clusters is None

    @cached_property
    def spread(self) -> float:
        """The standard deviation of one observation, a share of 1."""
        return _find_spread(self.changes, self.sampling, self.is_binary)

    def p_value_above(self, threshold: float) -> float:
        """Compute the p-value of a true change of `threshold` or less; one-sided."""
        return float(self.test.p_values_above(np.array([threshold]))[0])

    def p_value_below(self, threshold: float) -> float:
        """Compute the p-value of a true change of `threshold` or more; one-sided."""
        return float(self.test.p_values_below(np.array([threshold]))[0])

    def equivalence_p_value(self, margin: float) -> float:
        """Return the p-value of a true change of `margin` or more, in either direction.

        This is the equivalence test by two one-sided tests (Schuirmann 1987).
        """
        if margin not in self.equivalence:
            p_value = max(self.p_value_above(-margin), self.p_value_below(margin))
            self.equivalence[margin] = p_value
        return self.equivalence[margin]

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the interval of changes that are not ruled out; `low` and `high` are at 5 %."""
        return self.change_test.interval(-1.0, 1.0, alpha)

    def margin_interval(self, alpha: float = 2 * ALPHA) -> tuple[float, float]:
        """Return the interval of the test against margins and budgets, `alpha` / 2 at each end."""
        return self.test.interval(-1.0, 1.0, alpha)

    def shown_sign(self, alpha: float) -> int:
        """Return -1 or 1 for a fall or rise that is shown at `alpha`, two-sided; 0 for neither.

        Looks may rule out both sides; then neither is shown.
        """
        zero = np.zeros(1)
        is_rise = 2 * float(self.change_test.p_values_above(zero)[0]) < alpha
        is_fall = 2 * float(self.change_test.p_values_below(zero)[0]) < alpha
        return is_rise - is_fall


def compare_scores(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    sampling: Sampling | None = None,
) -> Difference:
    """Compare two lists of scores question by question: after - before.

    Args:
        before, after: one score per question, in the same order.
        sampling: how the questions were drawn and looked at; None: equal weights, one look.

    Raises:
        ValueError: there is no score, one is not a number from 0 to 1, or the lengths differ.

    4 of 10 questions are lost and none is gained. McNemar gives twice 0.5 to the fourth power:

    >>> d = compare_scores([1] * 6 + [0] * 4, [1, 1] + [0] * 8)
    >>> d.value, d.mcnemar_p_value, round(d.p_value, 3), round(d.low, 3), round(d.high, 3)
    (-0.4, 0.125, 0.078, -0.718, 0.044)
    """
    x, y = to_array(before), to_array(after)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} scores before and {len(y)} after cannot be paired")
    sampling = sampling or Sampling()
    changes = y - x
    is_binary = bool(np.isin([x, y], (0.0, 1.0)).all())
    has_mcnemar = is_binary and not sampling.looks and sampling.clusters is None
    # A `Difference` builds its own test, so it is made first, and gets the results below.
    untested = Difference(
        value=float(to_weighted(changes, sampling).mean()),
        standard_error=nan,
        low=nan,
        high=nan,
        p_value=nan,
        mcnemar_p_value=mcnemar_p_value(changes) if has_mcnemar else nan,
        n=len(changes),
        sampling=sampling,
        is_binary=is_binary,
        changes=changes,
    )
    # For single 0/1 answers, `_find_spread` adds one lost and one gained answer, so that the
    # spread is never 0. With them it is the spread of two observations more.
    n_added = 2 if untested.has_independent_answers else 0
    n_counted = len(untested.observations) + n_added
    # After an evaluation that may have stopped early, no standard error is right.
    standard_error = nan if sampling.looks else untested.spread / sqrt(n_counted)
    test, zero = untested.change_test, np.zeros(1)
    smaller_tail = min(float(test.p_values_above(zero)[0]), float(test.p_values_below(zero)[0]))
    p_value = min(1.0, 2 * smaller_tail)
    low, high = untested.interval()
    return replace(untested, standard_error=standard_error, low=low, high=high, p_value=p_value)


def estimate_mean(scores: Sequence[float] | Floats, sampling: Sampling | None = None) -> Estimate:
    """Estimate the mean score with its standard error and 95 % interval.

    Args:
        scores: One score per question.
        sampling: How the questions were drawn and looked at; None: equal weights, one look.

    Raises:
        ValueError: there is no score, or one is not a number from 0 to 1.

    >>> half = estimate_mean([1.0, 0.0, 1.0, 0.0])
    >>> round(half.value, 2), round(half.standard_error, 4), round(half.low, 4), round(half.high, 4)
    (0.5, 0.2887, 0.0807, 0.9193)
    """
    x = to_array(scores)
    sampling = sampling or Sampling()
    _, _, test = sampling.build_test([x], lowest=0.0, highest=1.0)
    n = test.counts[-1].sum()  # of questions or clusters
    # After an evaluation that may have stopped early, no standard error is right.
    standard_error = nan if sampling.looks else _find_spread(x, sampling) / sqrt(n)
    low, high = test.interval(lowest=0.0, highest=1.0)
    return Estimate(float(to_weighted(x, sampling).mean()), standard_error, low, high)


def mcnemar_p_value(changes: Floats) -> float:
    """Compute McNemar's exact p-value of 0/1 scores: are as many lost as gained?"""
    lost, gained = int((changes < 0).sum()), int((changes > 0).sum())
    return min(1.0, 2 * float(scipy.special.bdtr(min(lost, gained), lost + gained, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979); nan stays nan.

    Not Benjamini-Hochberg: people read a report's claims one by one. Holm bounds the chance of even
    one false claim, however the benchmarks depend on each other.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    ordered = sorted((p, i) for i, p in enumerate(p_values) if not isnan(p))
    adjusted = [nan] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p))
        adjusted[i] = highest
    return adjusted


def to_array(scores: Sequence[float] | Floats) -> Floats:
    """Check scores and return them as an array.

    Raises:
        ValueError: there is no score, or one is not a number from 0 to 1.
    """
    x = np.asarray(scores, dtype=float)
    if len(x) == 0:
        raise ValueError("there is no question to compare")
    if n_bad := int((~((x >= 0) & (x <= 1))).sum()):
        raise ValueError(f"{n_bad} of {len(x)} scores are not numbers between 0 and 1")
    return x


def to_weighted(x: Floats, sampling: Sampling) -> Floats:
    """Return numbers whose plain mean is the weighted mean of x, [n]."""
    return x * sampling.weigh_questions(len(x))


def _find_spread(x: Floats, sampling: Sampling, is_binary: bool = False) -> float:
    """Compute the standard deviation of the observations; nan if they do not vary.

    For 0/1 scores one lost and one gained answer are added, so that the spread is not 0 where no
    answer changed. Clusters get them only then.
    """
    (means,), weights = sampling.to_observations([x])
    numbers = weights * means
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0
    if is_binary and (sampling.clusters is None or spread <= 1e-12):
        return float(np.append(numbers, (-1.0, 1.0)).std())
    return spread if spread > 1e-12 else nan
