"""Split the noise of a mean over several seeds of one configuration.

Other questions would give other scores (question noise). Another seed would give another model
(training noise). More questions reduce only the first, more seeds only the second. The larger one
says what to buy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from math import log, nan, sqrt
from typing import Any

import numpy as np
import scipy

from slimdown.stats.estimates import Estimate
from slimdown.stats.likelihood import ALPHA, EmpiricalLikelihoodTest
from slimdown.stats.sequential import Floats

ENOUGH_SEEDS = 5  # of one configuration, to tell how much it varies
_LOWEST, _HALVINGS = -300.0, 45  # the search for a p-value: its least logarithm, and its steps


@dataclass(frozen=True)
class SeedMean(Estimate):
    """The mean change of one or several seeds, and where its uncertainty comes from."""

    sd_over_seeds: float = nan  # standard deviation; nan where there is one seed
    # standard errors of the mean: for other questions, and for other seeds
    question_error: float = nan
    training_error: float = nan


def split_noise(*parts: Floats, steps: Sequence[float] = ()) -> SeedMean:
    """Estimate the mean change of several seeds, and split its noise: questions and training.

    In a two-way analysis of variance, each number is the sum of the mean change, a seed's effect, a
    question's effect and a residual. The residual is what seed and question do not explain: a seed
    does better on one question than its own mean and the mean of this question suggest.

    The interval adds two half-widths in quadrature, one for other seeds and one for other questions
    (the idea: Howe 1974; Zou and Donner 2008). Each is a standard error times a quantile of
    Student's t. The interval assumes that the changes of seeds are normal; those of a training that
    rarely collapses are not.

    Args:
        parts: [seeds, questions] each, tuned - base; at least two seeds. The change is the sum of
            the parts' means, such as each benchmark's share of the overall mean.
        steps: For each part, how much one 0/1 answer counts in it. One lost and one gained question
            are then added. 0: its scores are graded; empty: all scores are graded.

    Returns:
        The mean. Its errors and interval are nan if a part has a single question, or if neither
        seeds nor questions differ, because it is then unknown how others differ.
    """
    n_seeds, fewest_questions = len(parts[0]), min(part.shape[1] for part in parts)
    seed_means = np.sum([part.mean(axis=1) for part in parts], axis=0)
    mean, sd_over_seeds = float(seed_means.mean()), float(seed_means.std(ddof=1))
    unknown = SeedMean(mean, standard_error=nan, low=nan, high=nan, sd_over_seeds=sd_over_seeds)
    if fewest_questions == 1:
        return unknown
    # All these variances are of the mean over seeds. The residual makes the means of seeds vary and
    # also those of questions, so it is in both variances. It may count only once in their sum.
    seed_variance = sd_over_seeds**2 / n_seeds
    parts_and_steps = zip(parts, steps or [0.0] * len(parts), strict=True)
    question_variance = sum(_find_question_variance(part, step) for part, step in parts_and_steps)
    residual = sum(map(_find_residual, parts)) / n_seeds
    training_variance = max(0.0, seed_variance - residual)
    standard_error = sqrt(training_variance + question_variance)
    if standard_error <= 1e-12:  # 0 but for rounding
        return unknown
    degrees = [n_seeds - 1, fewest_questions - 1]
    seed_quantile, question_quantile = scipy.special.stdtrit(degrees, 1 - ALPHA / 2).tolist()
    # The quantile of the seeds belongs to the variance that was measured between their means, the
    # residual included. So in the interval, the residual is taken out of the questions instead.
    question_effect = max(0.0, question_variance - residual)
    square = seed_quantile**2 * seed_variance + question_quantile**2 * question_effect
    # By chance, the seeds' means may vary less than the residual alone makes them. Then the seeds
    # would add less than was taken out of the questions, and the interval would be too narrow. So
    # its half-width is at least the standard error times the questions' quantile.
    half_width = max(question_quantile * standard_error, sqrt(square))
    return SeedMean(
        mean,
        standard_error,
        low=max(-1.0, mean - half_width),
        high=min(1.0, mean + half_width),
        sd_over_seeds=sd_over_seeds,
        question_error=sqrt(question_variance),
        training_error=sqrt(training_variance),
    )


def _find_question_variance(part: Floats, step: float) -> float:
    """Return the variance of the mean over seeds that comes from which questions were drawn."""
    n, by_question = len(part[0]), part.mean(axis=0)
    variance = float(by_question.var(ddof=1)) / n
    if step:
        with_flips = np.append(by_question, (-step, step))
        return max(variance, float(with_flips.var()) / (n + 2))
    return variance


@dataclass(frozen=True)
class SeedSpread:
    """How much the means of single seeds vary, of one configuration or pooled over several."""

    variance: float  # of one seed's mean, the residual included
    residual: float  # the part of it that is a seed's luck with single questions, see `split_noise`
    freedom: float  # degrees of freedom; of one configuration, one less than its seeds


def pool_spreads(spreads: Sequence[SeedSpread]) -> SeedSpread:
    """Pool the spreads of configurations that are taken to vary alike."""
    freedom = [spread.freedom for spread in spreads]
    variance = float(np.average([spread.variance for spread in spreads], weights=freedom))
    residual = float(np.average([spread.residual for spread in spreads], weights=freedom))
    return SeedSpread(variance, residual, sum(freedom))


@dataclass(frozen=True)
class MeanTest:
    """The test of a mean change over seeds, of one benchmark or of several.

    The model is that of `split_noise`: a seed shifts all answers, a question all seeds, and both
    are drawn at random. So the claim is about other questions and other seeds of this
    configuration. Two one-sided tests are combined, each as a distance in its own standard errors:

    - Questions: the empirical likelihood ratio of each question's mean over the seeds. It holds for
      few and skewed answers, where a standard error does not. Such means move in smaller steps than
      answers do, by 1/S where each of S seeds flips other answers. So as much less is added.
    - Seeds: Student's, with the variance of the seeds' means. It may be pooled over configurations
      that are taken to vary alike; then it has their degrees of freedom together.

    The squares of the two distances that a level needs are added (Howe 1974), the answers that
    differ by seed and question counted once. The p-value is the level at which this reaches the
    distance that is seen. It is never below that of the questions alone.
    """

    value: float
    questions: EmpiricalLikelihoodTest
    n_seeds: int = 1
    spread: SeedSpread | None = None  # None: the claim is about this training alone
    standard_error: float = nan  # the two distances have no common one

    @cached_property
    def p_value(self) -> float:
        """Of no change, two-sided."""
        zero = np.zeros(1)
        smaller = min(float(self._p_values_above(zero)[0]), float(self._p_values_below(zero)[0]))
        return min(1.0, 2 * smaller)

    def equivalence_p_value(self, margin: float) -> float:
        """Return the p-value of a true change of `margin` or more, in either direction."""
        lowest, highest = np.array([-margin]), np.array([margin])
        return max(float(self._p_values_above(lowest)[0]), float(self._p_values_below(highest)[0]))

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the means that are not ruled out, `alpha` / 2 at each end: the tests, inverted."""

        def p_values(points: Floats) -> Floats:
            above, below = points
            return np.stack([self._p_values_above(above), self._p_values_below(below)])

        low, high = self.questions.find_ends(p_values, (-1.0, 1.0), (1.0, -1.0), alpha / 2)
        return min(float(low), self.value), max(float(high), self.value)

    def margin_interval(self, alpha: float = 2 * ALPHA) -> tuple[float, float]:
        """Return the same interval: one test decides about a change and about a margin."""
        return self.interval(alpha)

    def shown_sign(self, alpha: float) -> int:
        """Return -1 or 1 for a fall or rise that is shown at `alpha`, two-sided; 0 for neither."""
        return int(np.sign(self.value)) if self.p_value < alpha else 0

    def _p_values_above(self, thresholds: Floats) -> Floats:
        """Compute one-sided p-values; null hypothesis: the mean is a threshold or less."""
        p_values = self.questions.p_values_above(thresholds)
        return add_seed_noise(self.value - thresholds, p_values, self.spread, self.n_seeds)

    def _p_values_below(self, thresholds: Floats) -> Floats:
        """Compute one-sided p-values; null hypothesis: the mean is a threshold or more."""
        p_values = self.questions.p_values_below(thresholds)
        return add_seed_noise(thresholds - self.value, p_values, self.spread, self.n_seeds)


def add_seed_noise(
    distances: Floats, question_p_values: Floats, spread: SeedSpread | None, n_seeds: int
) -> Floats:
    """Turn p-values for other questions into p-values for other questions and other seeds.

    A claim at level p needs a certain distance from the threshold, more for a smaller p. The square
    of this distance is what a claim about other seeds needs, plus what one about other questions
    needs (Howe 1974):

        t(p)**2 * variance of the mean by seeds + z(p)**2 * variance of the mean by questions

    t is the quantile of Student's distribution, z that of the normal one. Both variances, as they
    are measured, hold the residual: a seed's luck with single questions makes the means of seeds
    vary, and also those of questions. It counts once, so it is taken out of the second variance.

    The p-value is the level that needs just the measured distance. It is never below that of the
    questions alone.

    Args:
        distances: How far the mean lies from each threshold, on the side of the claim.
        question_p_values: The p-value of each distance, by the questions alone.
        spread: How much seeds vary, with the residual; None: the p-values stay, for they are about
            these seeds alone.
        n_seeds: How many the mean was taken over.

    Returns:
        The p-value of each distance.
    """
    if spread is None:
        return question_p_values
    z_scores = -scipy.special.ndtri(question_p_values)
    # On the other side of the threshold nothing is claimed, so the p-value stays.
    is_claimed = (distances > 0) & (z_scores > 0)
    distances, z_scores = distances[is_claimed], z_scores[is_claimed]
    seed_variance, residual = spread.variance / n_seeds, spread.residual / n_seeds
    # A z score is the distance in standard errors, here those of the questions. So the square of
    # their quotient is the variance by questions, the residual included.
    question_variances = np.maximum(0.0, (distances / z_scores) ** 2 - residual)
    # By halving, find the logarithm of the level that needs just the measured distance.
    low, high = np.full_like(distances, _LOWEST), np.full_like(distances, log(0.5))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        levels = np.exp(middle)
        t, z = scipy.special.stdtrit(spread.freedom, levels), scipy.special.ndtri(levels)
        needed_squares = t**2 * seed_variance + z**2 * question_variances
        needs_more = needed_squares > distances**2  # then the p-value lies above the middle
        low, high = np.where(needs_more, middle, low), np.where(needs_more, high, middle)
    p_values = question_p_values.copy()
    p_values[is_claimed] = np.maximum(p_values[is_claimed], np.exp(high))
    return p_values


@dataclass(frozen=True)
class SeedAnswers:
    """The answers of a configuration's seeds to the questions of one benchmark, or of several."""

    parts: Sequence[Floats]  # [seeds, questions] each; the change is the sum of their means
    bounds: Sequence[float]  # for each part, how large one number can be
    step: float = 0.0  # how much one question counts
    # Whether there is one part, of changes of 0/1 answers of one kind or their means over seeds
    is_binary: bool = False
    seeds: tuple[str, ...] = ()  # their names, in the order of the rows of each part

    @property
    def n_seeds(self) -> int:
        """How many seeds answered."""
        return len(self.parts[0])

    def measure_spread(self) -> SeedSpread:
        """Measure how much its seeds vary.

        Half of the square of `step` is the least variance: else a few seeds that agree by chance
        would look certain.
        """
        by_seed = np.sum([part.mean(axis=1) for part in self.parts], axis=0)
        variance = max(float(by_seed.var(ddof=1)), self.step**2 / 2)
        return SeedSpread(variance, sum(map(_find_residual, self.parts)), len(by_seed) - 1)

    def build_test(self, spread: SeedSpread | None) -> MeanTest:
        """Build the test of the mean change.

        Args:
            spread: How much seeds vary; None: the claim is about these trainings alone.
        """
        # The test takes one list of numbers: each question's mean over the seeds, for all parts. In
        # its plain mean, a part counts by its number of questions. In the sum of the parts' means,
        # all count alike. So the numbers of a part with n of N questions are multiplied by N / n.
        sizes = [part.shape[1] for part in self.parts]
        scales = [sum(sizes) / n for n in sizes]
        means = [p.mean(axis=0) * scale for p, scale in zip(self.parts, scales, strict=True)]
        numbers = np.concatenate(means)
        bound = max(b * scale for b, scale in zip(self.bounds, scales, strict=True))
        # Equal numbers are counted. Without rounding, the order of a sum could make them differ.
        values, counts = np.unique(numbers.round(12), return_counts=True)
        test = EmpiricalLikelihoodTest(values, counts[None].astype(float), -bound, bound)
        if self.is_binary:
            # There is one part, so its scale is 1. The test adds a part of an answer, because means
            # of 0/1 answers move in steps. `step` is how far a number moves at a time: 1 where all
            # S seeds flip the same answers, and 1/S where each flips others. If both occur, it is
            # the mean size of a change, weighted by size: the larger steps matter more.
            magnitudes = np.abs(values)
            weights = counts * magnitudes
            step = float(np.average(magnitudes, weights=weights)) if weights.any() else 1.0
            test = replace(test, is_margin=True, step=step)
        return MeanTest(float(numbers.mean()), test, self.n_seeds, spread)

    def subtract(self, other: "SeedAnswers") -> "SeedAnswers":
        """Subtract the answers of another configuration to the same questions.

        The answers of both are changes, tuned - base. If both have the same base answers, these
        cancel out. What is left is a difference of two tuned scores, which is no larger than one
        change can be. Otherwise it can be as large as both changes together. Whether the base
        answers are the same is not known. So the result takes them to be, unless a difference is
        larger than one change can be, which proves the contrary.

        Returns:
            If both have the same seeds: the differences by seed. Otherwise one row without seeds:
            the difference of the two means over seeds. The bounds are those of such differences.
        """
        is_paired = self.is_paired_with(other)
        rows = [other.seeds.index(seed) for seed in self.seeds] if is_paired else []
        is_binary = self.is_binary and other.is_binary
        parts, bounds = list[Floats](), list[float]()
        answers_and_bounds = zip(self.parts, other.parts, self.bounds, other.bounds, strict=True)
        for own, theirs, own_bound, their_bound in answers_and_bounds:
            if is_paired:
                part = own - theirs[rows]
            else:
                part = (own.mean(axis=0) - theirs.mean(axis=0))[None]
            parts.append(part)
            largest = float(np.abs(part).max())
            bound = max(own_bound, their_bound)  # of one change
            bounds.append(bound if largest <= bound else own_bound + their_bound)
            # A difference of two 0/1 scores is -1, 0 or 1, as a change of one is.
            is_binary = is_binary and largest <= 1
        seeds = self.seeds if is_paired else ()
        return SeedAnswers(parts, bounds, max(self.step, other.step), is_binary, seeds)

    def is_paired_with(self, other: "SeedAnswers") -> bool:
        """Whether both have the same seeds. Runs of one seed are trained on the same rows."""
        return len(self.seeds) == self.n_seeds and set(self.seeds) == set(other.seeds)


def build_tests(answers: Mapping[Any, SeedAnswers]) -> dict[Any, MeanTest]:
    """Build the test of each configuration's mean; all answered the same questions.

    Args:
        answers: By configuration. One with several seeds, but fewer than `ENOUGH_SEEDS`, gets the
            spread that is pooled over all that have several.
    """
    spreads = {key: own.measure_spread() for key, own in answers.items() if own.n_seeds > 1}
    pooled = pool_spreads(list(spreads.values())) if spreads else None
    tests = {}
    for key, own in answers.items():
        has_few = key in spreads and own.n_seeds < ENOUGH_SEEDS
        tests[key] = own.build_test(pooled if has_few else spreads.get(key))
    return tests


def build_difference_tests(
    groups: Mapping[str, SeedAnswers], pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], MeanTest]:
    """Build the test of each difference between the means of two groups, second - first.

    The claim is about other questions and other seeds of both groups: the model is that of
    `MeanTest`, with the differences of the answers in place of changes. Groups with the same seeds
    are compared seed by seed. Two seeds say almost nothing about how much they vary. So below
    `ENOUGH_SEEDS` all groups are assumed to vary alike, and their spreads are pooled. From then on
    each pair has its own.

    Args:
        groups: The answers to the same questions, by the value of a setting.
        pairs: The values of the groups to compare, first and second. A pair is left out if one of
            its groups has a single seed or is missing.

    Returns:
        The test of each pair that is not left out.
    """
    # The groups of several seeds: a single one does not say how much seeds vary.
    several = {value: answers for value, answers in groups.items() if answers.n_seeds > 1}
    spreads = {value: answers.measure_spread() for value, answers in several.items()}
    # The differences of all groups that have the same seeds as another. With few seeds, the spreads
    # of several such pairs are pooled. If some pairs have other seeds than others, `_pool_pairs`
    # takes those that have the seeds which it is given.
    paired_differences = [
        second.subtract(first)
        for first, second in combinations(several.values(), 2)
        if second.is_paired_with(first)
    ]
    tests = {}
    for first, second in pairs:
        if not (first in several and second in several):
            continue
        difference = several[second].subtract(several[first])
        has_enough = min(several[first].n_seeds, several[second].n_seeds) >= ENOUGH_SEEDS
        if not several[second].is_paired_with(several[first]):
            alike = [] if has_enough else list(spreads.values())
            spread = _join_spreads([spreads[first], spreads[second]], alike)
        elif has_enough:
            spread = difference.measure_spread()
        else:
            spread = _pool_pairs(several[second].seeds, paired_differences)
        tests[first, second] = difference.build_test(spread)
    return tests


def _pool_pairs(seeds: Sequence[str], differences: Iterable[SeedAnswers]) -> SeedSpread:
    """Pool the spreads of all differences between groups with these seeds.

    The mean of their variances is twice the mean square of the interaction of groups and seeds, in
    a two-way analysis of variance. So it has (groups - 1) (seeds - 1) degrees of freedom.
    """
    alike = [d.measure_spread() for d in differences if set(d.seeds) == set(seeds)]
    # There is a difference for each pair of G groups, so len(alike) = G (G - 1) / 2, solved for G.
    n_groups = (1 + sqrt(1 + 8 * len(alike))) / 2
    freedom = round((n_groups - 1) * (len(seeds) - 1))
    return replace(pool_spreads(alike), freedom=freedom)


def _join_spreads(pair: Sequence[SeedSpread], alike: Sequence[SeedSpread]) -> SeedSpread:
    """Return the spread of the difference between the means of two groups with unlike seeds.

    The variances that come in are of one seed's mean. Those that are returned are of the difference
    between two means over seeds, for the one row that `SeedAnswers.subtract` makes of it.

    The variance of a difference is the sum of the variances of both means. A sum of variances v,
    each with f degrees of freedom, has about sum(v)**2 / sum(v**2 / f) degrees of freedom
    (Satterthwaite 1946).

    Args:
        pair: How much the mean of one seed varies, in each of the two groups.
        alike: The same for all groups that are taken to vary alike. Both groups then get the mean
            of their variances, weighted by degrees of freedom; each keeps its own residual. Empty:
            each keeps its own variance, too.
    """
    # The variance of a group's mean is that of one seed, divided by the number of seeds (there is
    # one seed more than degrees of freedom). So it is that of one seed times this factor.
    factors = [1 / (spread.freedom + 1) for spread in pair]
    residual = sum(f * spread.residual for f, spread in zip(factors, pair, strict=True))
    # The sum is written as measured variances, each with its weight.
    if alike:
        # One seed has the same variance v in both groups, so the sum is v times both factors
        # together. v is the mean of the variances of all groups. In it, each group has its share of
        # the degrees of freedom as its weight.
        freedom_of_all = sum(spread.freedom for spread in alike)
        measured, weights = alike, [sum(factors) * s.freedom / freedom_of_all for s in alike]
    else:
        measured, weights = pair, factors
    variances = [weight * spread.variance for weight, spread in zip(weights, measured, strict=True)]
    squares = [v**2 / spread.freedom for v, spread in zip(variances, measured, strict=True)]
    return SeedSpread(sum(variances), residual, freedom=sum(variances) ** 2 / sum(squares))


def _find_residual(part: Floats) -> float:
    """Return the variance of one seed's mean that is its luck with single questions."""
    n_seeds, n = part.shape
    # What neither the seed's mean nor the question's explains, see `split_noise`
    rest = part - part.mean(axis=1)[:, None] - part.mean(axis=0) + part.mean()
    # The variance of one number's rest, by its (seeds - 1) (questions - 1) degrees of freedom. The
    # mean over n questions has an n-th of it. A single question has no rest.
    variance = (rest**2).sum() / ((n_seeds - 1) * max(1, n - 1))
    return float(variance / n)
