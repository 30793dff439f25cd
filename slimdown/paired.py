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

import numpy as np
import scipy
from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.8
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
class Difference:
    """How the scores of the same questions differ between two models: after - before."""

    value: float
    standard_error: float
    low: float  # of the 95 % interval
    high: float
    p_value: float  # that there is no change
    test: str  # what the p-value comes from: exact McNemar, paired t, or clustered t
    t_test_p_value: float  # the paired t-test of Mai 2025, beside it
    n: int
    center: float  # where the interval is centred: `value`, shrunk a little for 0/1 scores
    degrees_of_freedom: float

    def p_value_above(self, threshold: float) -> float:
        """How likely data like these are if the true change is `threshold` or less; one-sided."""
        if isnan(self.standard_error):
            return nan
        if self.standard_error == 0:
            return 0.0 if self.center > threshold else 1.0
        return float(scipy.stats.t(self.degrees_of_freedom).sf((self.center - threshold) / self.standard_error))

    def p_value_below(self, threshold: float) -> float:
        """How likely data like these are if the true change is `threshold` or more; one-sided."""
        if isnan(self.standard_error):
            return nan
        if self.standard_error == 0:
            return 0.0 if self.center < threshold else 1.0
        return float(scipy.stats.t(self.degrees_of_freedom).sf((threshold - self.center) / self.standard_error))

    def equivalence_p_value(self, margin: float) -> float:
        """How likely data like these are if the true change is `margin` or more either way: two one-sided tests.

        Schuirmann 1987. Below 0.05 exactly where the 90 % interval lies within the margin.
        """
        one, other = self.p_value_above(-margin), self.p_value_below(margin)
        return nan if isnan(one) else max(one, other)

    def minimum_detectable_change(self, alpha: float = ALPHA, power: float = POWER) -> float:
        """The smallest true change that would be shown with this `power` by as many questions as these."""
        return _detectable(alpha, power, self.degrees_of_freedom) * self.standard_error

    def n_to_decide(self, margin: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
        """About how many questions would show either the change or its absence, if it is as large as it looks here.

        None where none would: a change of exactly the margin, or no standard error to go by.
        """
        if isnan(self.standard_error):
            return None
        spread = self.standard_error * sqrt(self.n)  # of one question's difference
        size = abs(self.value)
        to_show = (_detectable(alpha, power, inf) * spread / size) ** 2 if size > 0 else inf
        room = margin - size
        # Both one-sided tests must reject, so with no change at all each may miss half as often.
        miss = 1 - power if size > 0 else (1 - power) / 2
        to_refute = (
            ((scipy.stats.norm.isf(alpha) + scipy.stats.norm.isf(miss)) * spread / room) ** 2 if room > 0 else inf
        )
        fewest = min(to_show, to_refute)
        return max(self.n + 1, ceil(fewest)) if fewest < 1e9 else None

    def n_to_bound(self, threshold: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
        """About how many questions would show on which side of `threshold` the change lies, if it is as it looks here.

        None where none would: a change of exactly the threshold, or no standard error to go by.
        """
        distance = abs(self.value - threshold)
        if isnan(self.standard_error) or distance == 0:
            return None
        spread = self.standard_error * sqrt(self.n)
        n = ((scipy.stats.norm.isf(alpha) + scipy.stats.norm.isf(1 - power)) * spread / distance) ** 2
        return max(self.n + 1, ceil(n)) if n < 1e9 else None


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

    Independent 0/1 scores: exact McNemar test, interval of Bonett and Price 2012 (one question is added to the lost and
    one to the gained, so that "nothing changed" of a few questions is not certainty). Other scores: paired t. Clusters:
    t with a cluster-robust standard error (CR1) and as many degrees of freedom as there are clusters less one.

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
    if grouped is None and _is_binary(x) and _is_binary(y):
        lost, gained = int((d < 0).sum()), int((d > 0).sum())
        p_value = float(scipy.stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
        lost_share, gained_share = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
        center = gained_share - lost_share
        error = sqrt((lost_share + gained_share - center**2) / (n + 2))
        half = float(scipy.stats.norm.isf(ALPHA / 2)) * error
        low, high = max(-1.0, center - half), min(1.0, center + half)
        return Difference(value, error, low, high, p_value, "exact McNemar", t_test, n, center, inf)
    error, freedom = _standard_error(d, grouped), _degrees_of_freedom(n, grouped)
    interval = _student(value, error, freedom)
    if grouped is None:
        p_value, test = t_test, "paired t"
    else:
        p_value, test = _two_sided(value, error, freedom), "clustered t"
    return Difference(value, error, interval.low, interval.high, p_value, test, t_test, n, value, freedom)


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


def seed_noise(changes: Sequence[Sequence[float]]) -> Noise:
    """The mean change of several seeds and, apart, the noise of the questions asked and of the training.

    Args:
        changes: one row a seed, one column a question: after - before.

    Seeds and questions are crossed random effects, their variances those of the two-way analysis of variance; the
    interval of the mean has Satterthwaite's degrees of freedom. With one seed, the training's part is not known: nan.

    Raises:
        ValueError: rows of unequal length, no number.
    """
    if len({len(row) for row in changes}) != 1:
        raise ValueError(
            f"seeds were asked {sorted({len(row) for row in changes})} questions; all must be asked the same"
        )
    d = np.asarray(changes, dtype=float)
    n_seeds, n = d.shape
    _numbers(d.ravel())
    if n_seeds == 1 or n == 1:
        one = _student(float(d.mean()), _standard_error(d.mean(axis=0), None), max(n - 1, 0))
        return Noise(one, one.standard_error, nan, nan, n_seeds)
    overall, by_seed, by_question = d.mean(), d.mean(axis=1), d.mean(axis=0)
    seeds = n * float(((by_seed - overall) ** 2).sum()) / (n_seeds - 1)
    questions = n_seeds * float(((by_question - overall) ** 2).sum()) / (n - 1)
    rest = d - by_seed[:, None] - by_question[None, :] + overall
    residual = float((rest**2).sum()) / ((n_seeds - 1) * (n - 1))
    training = max(0.0, (seeds - residual) / n)
    question_variance = max(0.0, (questions - residual) / n_seeds) / n + residual / (n * n_seeds)
    total = training / n_seeds + question_variance
    parts = [(seeds, n_seeds - 1), (questions, n - 1), (residual, (n_seeds - 1) * (n - 1))]
    spread = sum((part / (n * n_seeds)) ** 2 / freedom for part, freedom in parts)
    freedom = total**2 / spread if spread > 0 else inf
    return Noise(
        mean=_student(float(overall), sqrt(total), freedom),
        question_standard_error=sqrt(question_variance),
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
