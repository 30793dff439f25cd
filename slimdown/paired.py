"""Two models' scores on the same questions -> estimates with intervals, tests and what they could not have seen.

Pure functions of numbers (numpy and scipy). Everything is two-sided and at 95 % unless it says otherwise. Both models
answered the same questions, so what counts is each question's difference: the noise of which questions were asked
drops out, and a change is seen with far fewer of them than two independent scores would need.

`scipy.stats` is loaded by scipy at its first use: it takes most of a second, and whoever only needs an `Estimate` does
not wait for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isnan, nan, sqrt
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.8
MCNEMAR, PAIRED_T, CLUSTERED_T = "exact McNemar", "paired t", "clustered t"
# Fewer groups of questions than this say too little of how groups differ; questions then count as independent.
FEWEST_CLUSTERS = 10
_REPLICATES = 10_000
_SEED = 20250527  # of the bootstrap: the same scores always give the same interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is."""

    value: float
    standard_error: float
    low: float  # of the 95 % interval
    high: float


@dataclass(frozen=True)
class Table:
    """How many 0/1 scores changed."""

    lost: int  # right before, wrong after
    gained: int
    n: int  # of all answers

    def z(self, change: float, correction: float = 0.0) -> float:
        """The score statistic against a true change: Tango 1998; at 0 it is McNemar's.

        correction: answers added to what was gained, a half against the claim that is tested (for continuity).
        Positive where more was gained than `change` says. The chance of a loss is the likeliest one that such a change
        leaves, so unlike an estimate's own standard error it does not vanish where nothing was lost or gained.
        """
        n, lost, gained = self.n, self.lost, self.gained
        linear = (2 * n - gained + lost) * change - gained - lost
        root = max(0.0, linear**2 + 8 * n * lost * change * (1 - change))
        chance_of_loss = (sqrt(root) - linear) / (4 * n)
        variance = n * (2 * chance_of_loss + change * (1 - change))
        excess = gained - lost - n * change + correction
        if variance <= 0:
            return 0.0 if excess == 0 else (inf if excess > 0 else -inf)
        return excess / sqrt(variance)


@dataclass(frozen=True)
class Difference:
    """How the scores of the same questions differ between two models: after - before."""

    value: float
    standard_error: float  # nan where it cannot be had: fewer than two questions or clusters, no spread at all
    low: float  # of the 95 % interval
    high: float
    p_value: float  # that there is no change
    test: str  # what the p-value comes from: exact McNemar, paired t, or clustered t
    t_test_p_value: float  # the paired t-test of Mai 2025, beside it
    n: int
    table: Table | None  # of independent 0/1 scores
    degrees_of_freedom: float

    def p_value_above(self, threshold: float) -> float:
        """How likely data like these are if the true change is `threshold` or less; one-sided."""
        if self.table:
            return float(scipy.stats.norm.sf(self.table.z(threshold, -0.5)))
        if isnan(self.standard_error):
            return nan
        return float(scipy.stats.t(self.degrees_of_freedom).sf((self.value - threshold) / self.standard_error))

    def p_value_below(self, threshold: float) -> float:
        """How likely data like these are if the true change is `threshold` or more; one-sided."""
        if self.table:
            return float(scipy.stats.norm.cdf(self.table.z(threshold, 0.5)))
        if isnan(self.standard_error):
            return nan
        return float(scipy.stats.t(self.degrees_of_freedom).sf((threshold - self.value) / self.standard_error))

    def equivalence_p_value(self, margin: float) -> float:
        """How likely data like these are if the true change is `margin` or more either way: two one-sided tests.

        Schuirmann 1987; for 0/1 scores with Tango's statistic, which keeps its 5 % where nothing was gained.
        """
        one, other = self.p_value_above(-margin), self.p_value_below(margin)
        return nan if isnan(one) else max(one, other)

    def minimum_detectable_change(self, alpha: float = ALPHA, power: float = POWER) -> float:
        """The smallest true change that would be shown with this `power` by as many questions; nan if none would.

        As many answers are taken to change as changed here, or as the change itself needs.
        """
        if not self.table:
            return _detectable(alpha, power, self.degrees_of_freedom) * self.standard_error
        n, discordant = self.n, (self.table.lost + self.table.gained + 1) / (self.n + 2)
        if _mcnemar_power(n, 1.0, max(discordant, 1.0), alpha) < power:
            return nan
        low, high = 0.0, 1.0
        for _ in range(14):
            middle = (low + high) / 2
            enough = _mcnemar_power(n, middle, max(discordant, middle), alpha) >= power
            low, high = (low, middle) if enough else (middle, high)
        return high

    def n_to_decide(self, margin: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
        """About how many questions would show either the change or its absence, if it is as large as it looks here.

        None where none would (a change of exactly the margin), or it cannot be said: no standard error, or clusters, of
        which more would be needed and not only more questions.
        """
        if self._spread is None:
            return None
        size = abs(self.value)
        to_show = (_detectable(alpha, power, inf) * self._spread / size) ** 2 if size > 0 else inf
        room = margin - size
        # Both one-sided tests must reject, so with no change at all each may miss half as often.
        miss = 1 - power if size > 0 else (1 - power) / 2
        steps = scipy.stats.norm.isf(alpha) + scipy.stats.norm.isf(miss)
        to_refute = (steps * self._spread / room) ** 2 if room > 0 else inf
        fewest = min(to_show, to_refute)
        return max(self.n + 1, ceil(fewest)) if fewest < 1e9 else None

    def n_to_bound(self, threshold: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
        """About how many questions would show on which side of `threshold` the change lies, if it is as it looks here.

        None as for `n_to_decide`.
        """
        distance = abs(self.value - threshold)
        if self._spread is None or distance == 0:
            return None
        n = ((scipy.stats.norm.isf(alpha) + scipy.stats.norm.isf(1 - power)) * self._spread / distance) ** 2
        return max(self.n + 1, ceil(n)) if n < 1e9 else None

    @property
    def _spread(self) -> float | None:
        """Standard deviation of one question's difference."""
        if isnan(self.standard_error) or self.test == CLUSTERED_T:
            return None
        return self.standard_error * sqrt(self.n)


@dataclass(frozen=True)
class Noise:
    """What several seeds of one configuration say together, and where the doubt comes from."""

    mean: Estimate  # of the change, over seeds and questions
    question_standard_error: float  # of the mean: other questions would have been another test
    training_standard_error: float  # of the mean: other seeds would have been other models
    training_spread: float  # standard deviation of the change from seed to seed, question noise taken out
    n_seeds: int


def mean(scores: Sequence[float] | Floats, clusters: Sequence[str] | None = None) -> Estimate:
    """The mean score with its standard error and interval.

    Args:
        scores: one a question.
        clusters: the group that each question belongs to; None where they are independent.

    The interval of independent 0/1 scores is Wilson's, that of others Student's.

    Raises:
        ValueError: no score, or one that is no number.

    >>> half = mean([1.0, 0.0, 1.0, 0.0])
    >>> round(half.value, 2), round(half.standard_error, 4), round(half.low, 4), round(half.high, 4)
    (0.5, 0.2887, 0.15, 0.85)
    """
    x = _numbers(scores)
    grouped = _clusters(clusters)
    value, error, freedom = float(x.mean()), _standard_error(x, grouped), _degrees_of_freedom(len(x), grouped)
    if grouped is None and _is_binary(x):
        interval = scipy.stats.binomtest(int(x.sum()), len(x)).proportion_ci(method="wilson")
        return Estimate(value, error, float(interval.low), float(interval.high))
    return _student(value, error, freedom)


def difference(
    before: Sequence[float] | Floats, after: Sequence[float] | Floats, clusters: Sequence[str] | None = None
) -> Difference:
    """How `after` differs from `before`, question by question.

    Args:
        before, after: one score a question, in the same order.
        clusters: the group that each question belongs to; None where they are independent.

    Independent 0/1 scores: exact McNemar test; standard error and interval of Bonett and Price 2012, with one question
    added to the lost and one to the gained, so that "nothing changed" of a few questions is not certainty. Other
    scores: paired t; without any spread nothing is known. Clusters: t with a cluster-robust standard error (CR1), never
    below that of independent 0/1 scores, and as many degrees of freedom as clusters less one.

    Raises:
        ValueError: no score, or one that is no number, or unequal lengths.

    Of 10 questions 4 were lost and none gained; McNemar gives twice 0.5 to the fourth power:

    >>> d = difference([1] * 6 + [0] * 4, [1, 1] + [0] * 8)
    >>> d.value, d.p_value, round(d.low, 3), round(d.high, 3)
    (-0.4, 0.125, -0.686, 0.02)
    """
    x, y = _numbers(before), _numbers(after)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} scores before and {len(y)} after cannot be paired")
    d = y - x
    n, value, grouped = len(d), float(d.mean()), _clusters(clusters)
    t_test = _t_test_p_value(d)
    is_binary = _is_binary(x) and _is_binary(y)
    table = Table(int((d < 0).sum()), int((d > 0).sum()), n)
    adjusted = _adjusted_error(table) if is_binary else 0.0
    if grouped is None and is_binary:
        changed = table.lost + table.gained
        p_value = float(scipy.stats.binomtest(table.lost, changed).pvalue) if changed else 1.0
        center, half = (table.gained - table.lost) / (n + 2), float(scipy.stats.norm.isf(ALPHA / 2)) * adjusted
        low, high = max(-1.0, center - half), min(1.0, center + half)
        return Difference(value, adjusted, low, high, p_value, MCNEMAR, t_test, n, table, inf)
    error, freedom = max(_standard_error(d, grouped), adjusted), _degrees_of_freedom(n, grouped)
    error = error if error > 0 else nan
    interval = _student(value, error, freedom)
    p_value = nan if isnan(error) else _two_sided(value, error, freedom)
    test = PAIRED_T if grouped is None else CLUSTERED_T
    return Difference(value, error, interval.low, interval.high, p_value, test, t_test, n, None, freedom)


def forgetting_rate(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    chance: float = 0.0,
    clusters: Sequence[str] | None = None,
) -> Estimate | None:
    """The share of what the base had above `chance` that is gone, 1 - (A_tuned - c) / (A_base - c); None if undefined.

    Mai 2025, section 2.4, with c = 0. It is defined where the base is shown to beat chance: where the 95 % interval of
    its score lies above it. The interval is a paired bootstrap's: whole questions (or clusters) are drawn, with both
    their scores; 0/1 scores with half a question added to the lost and to the gained, so that no change at all has an
    interval too.

    >>> rate = forgetting_rate([1] * 60 + [0] * 40, [1] * 30 + [0] * 60 + [1] * 10)
    >>> round(rate.value, 3)
    0.333
    >>> forgetting_rate([0, 0, 0], [1, 0, 0]) is None
    True
    """
    x, y = _numbers(before), _numbers(after)
    grouped = _clusters(clusters)
    if not mean(x, clusters).low > chance:
        return None
    value = 1 - (float(y.mean()) - chance) / (float(x.mean()) - chance)
    draw = np.random.default_rng(_SEED)
    if grouped is None and _is_binary(x) and _is_binary(y):
        both, lost = float((x * y).sum()), float((x > y).sum())
        gained = float((y > x).sum())
        table = np.array([both, lost + 0.5, gained + 0.5, len(x) - both - lost - gained])
        counts = draw.multinomial(len(x), table / table.sum(), size=_REPLICATES) / len(x)
        bases, tuneds = counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]
    else:
        _, member = np.unique(grouped if grouped is not None else np.arange(len(x)), return_inverse=True)
        sums = np.stack([np.bincount(member, weights) for weights in (x, y, np.ones_like(x))])
        bases, tuneds = _resampled_means(sums.astype(float), draw)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = 1 - (tuneds - chance) / (bases - chance)
    rates = np.where(bases > chance, rates, np.inf)  # everything, and more, could be gone
    low, high = np.quantile(rates, [ALPHA / 2, 1 - ALPHA / 2], method="inverted_cdf")
    finite = rates[np.isfinite(rates)]
    return Estimate(value, float(finite.std(ddof=1)), min(float(low), value), max(float(high), value))


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


def seed_noise(changes: Sequence[Sequence[float]], clusters: Sequence[str] | None = None) -> Noise:
    """The mean change of several seeds and, apart, the noise of the questions asked and of the training.

    Args:
        changes: one row a seed, one column a question: after - before.
        clusters: the group that each question belongs to; None where they are independent.

    Seeds and questions are crossed random effects, their variances those of the two-way analysis of variance; with
    clusters, the questions' part is cluster-robust (CR1). The interval of the mean has Satterthwaite's degrees of
    freedom. With one seed the training's part is not known: nan.

    Raises:
        ValueError: rows of unequal length, no number.
    """
    if len(asked := sorted({len(row) for row in changes})) != 1:
        raise ValueError(f"seeds were asked {asked} questions; all must be asked the same")
    d = np.asarray(changes, dtype=float)
    n_seeds, n = d.shape
    _numbers(d.ravel())
    grouped = _clusters(clusters)
    overall, by_seed, by_question = float(d.mean()), d.mean(axis=1), d.mean(axis=0)
    freedom = _degrees_of_freedom(n, grouped)
    if n_seeds == 1 or n == 1:
        one = _student(overall, _standard_error(by_question, grouped), freedom)
        return Noise(one, one.standard_error, nan, nan, n_seeds)
    seeds = n * float(((by_seed - overall) ** 2).sum()) / (n_seeds - 1)
    rest = d - by_seed[:, None] - by_question[None, :] + overall
    residual = float((rest**2).sum()) / ((n_seeds - 1) * (n - 1))
    training = max(0.0, (seeds - residual) / n)
    # The mean over seeds scatters from question to question by what is the question's and by what is left.
    questions = _standard_error(by_question, grouped) ** 2
    total = training / n_seeds + questions
    if total == 0:  # no spread at all: nothing is known of how others would differ
        return Noise(_student(overall, nan, freedom), nan, nan, nan, n_seeds)
    spread = (seeds / (n * n_seeds)) ** 2 / (n_seeds - 1) + questions**2 / freedom
    return Noise(
        mean=_student(overall, sqrt(total), max(1.0, total**2 / spread)),
        question_standard_error=sqrt(questions),
        training_standard_error=sqrt(training / n_seeds),
        training_spread=sqrt(training),
        n_seeds=n_seeds,
    )


def _numbers(scores: Sequence[float] | Floats) -> Floats:
    x = np.asarray(scores, dtype=float)
    if len(x) == 0:
        raise ValueError("there is no question to compare")
    if n_bad := int((~np.isfinite(x)).sum()):
        raise ValueError(f"{n_bad} of {len(x)} scores are not numbers")
    return x


def _is_binary(x: Floats) -> bool:
    return bool(np.isin(x, (0.0, 1.0)).all())


def _clusters(clusters: Sequence[str] | None) -> NDArray[np.str_] | None:
    if clusters is None or len(set(clusters)) < FEWEST_CLUSTERS:
        return None
    return np.asarray(clusters)


def _degrees_of_freedom(n: int, clusters: NDArray[np.str_] | None) -> float:
    return (n if clusters is None else len(np.unique(clusters))) - 1


def _standard_error(x: Floats, clusters: NDArray[np.str_] | None) -> float:
    """Of the mean: as the harness has it, or robust to what the questions of a cluster have in common."""
    n = len(x)
    if n < 2:
        return nan
    if clusters is None:
        return float(x.std(ddof=1)) / sqrt(n)
    names, member = np.unique(clusters, return_inverse=True)
    sums = np.bincount(member, x - x.mean())
    return sqrt(float((sums**2).sum()) * len(names) / (len(names) - 1)) / n


def _student(value: float, error: float, freedom: float) -> Estimate:
    half = float(scipy.stats.t(freedom).isf(ALPHA / 2)) * error if freedom > 0 else nan
    return Estimate(value, error, value - half, value + half)


def _two_sided(value: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return float(2 * scipy.stats.t(freedom).sf(abs(value) / error))


def _adjusted_error(table: Table) -> float:
    lost, gained = (table.lost + 1) / (table.n + 2), (table.gained + 1) / (table.n + 2)
    return sqrt((lost + gained - (gained - lost) ** 2) / (table.n + 2))


def _mcnemar_power(n: int, change: float, discordant: float, alpha: float) -> float:
    """How often McNemar's exact test shows a change, if so many answers change in all."""
    binom = scipy.stats.binom
    likely = np.arange(*(int(end) for end in (binom.ppf(1e-6, n, discordant), binom.ppf(1 - 1e-6, n, discordant) + 1)))
    critical: Any = binom.ppf(alpha / 2, likely, 0.5)  # the first count whose tail reaches alpha / 2; reject below it
    critical = critical - (binom.cdf(critical, likely, 0.5) > alpha / 2)
    share = (1 + change / discordant) / 2
    shown = binom.cdf(critical, likely, share) + binom.sf(likely - critical - 1, likely, share)
    return float((binom.pmf(likely, n, discordant) * np.where(critical < 0, 0.0, shown)).sum())


def _t_test_p_value(d: Floats) -> float:
    return nan if len(d) < 2 else _two_sided(float(d.mean()), _standard_error(d, None), len(d) - 1)


def _detectable(alpha: float, power: float, freedom: float) -> float:
    """In standard errors: how large a change must be to be shown with this power."""
    if freedom <= 0:
        return nan
    t = scipy.stats.t(freedom)
    return float(t.isf(alpha / 2) + t.isf(1 - power))


def _resampled_means(sums: Floats, draw: np.random.Generator) -> tuple[Floats, Floats]:
    """The means before and after of `_REPLICATES` draws of whole clusters; sums: [before, after, n] by cluster."""
    n_clusters = sums.shape[1]
    even = np.full(n_clusters, 1 / n_clusters)
    at_once = max(1, 2_000_000 // n_clusters)
    parts = [
        draw.multinomial(n_clusters, even, size=min(at_once, _REPLICATES - start)) @ sums.T
        for start in range(0, _REPLICATES, at_once)
    ]
    totals = np.concatenate(parts)
    return totals[:, 0] / totals[:, 2], totals[:, 1] / totals[:, 2]
