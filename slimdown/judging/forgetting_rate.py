"""The forgetting rate: the share of the base's score that is gone, its test and its interval."""

from dataclasses import dataclass
from functools import cached_property
from math import atan, nan, pi, sqrt

import numpy as np

from slimdown.stats.estimates import Estimate, Sampling, to_array
from slimdown.stats.likelihood import ALPHA, EmpiricalLikelihoodTest
from slimdown.stats.sequential import Floats

_LOWER, _HIGHER = 0, 1  # rows of angles: below the measured ratio, and above it


@dataclass(frozen=True)
class RatioTest:
    """The test of the ratio tuned / base of the mean scores, which is 1 - the forgetting rate.

    The rate is that of "Slimming Down LLMs Without Losing Their Minds" (2025), section 2.4: a share
    of 1, below 0 for a gain. A ratio is ruled out if tuned - ratio * base is shown not to be 0 on
    average. The interval holds the ratios that are not ruled out, as Fieller's (1954) does. For
    budgets, the test has the methods of `Difference`: a change is then minus the rate times the
    measured base score.
    """

    # [k], of the distinct observations. An observation is a question, or the mean of a cluster.
    base_scores: Floats
    tuned_scores: Floats  # [k], of the same
    weights: Floats  # [k], of the same; their mean is 1 over all observations
    # Of scores from 0 to 1. Its counts say how often each of the k was seen, by each look.
    test: EmpiricalLikelihoodTest
    is_simple: bool  # whether each observation is one 0/1 answer, all of one kind

    @classmethod
    def build(
        cls, base_scores: Floats, tuned_scores: Floats, sampling: Sampling | None = None
    ) -> "RatioTest | None":
        """Build the test from the scores of questions.

        Args:
            base_scores, tuned_scores: [n], scores from 0 to 1 of the same questions.
            sampling: How the questions were drawn; None: equal weights, one look.

        Returns:
            The test. None if the base scored 0 on average, because there is no ratio then, or if
            one question was asked, because one question has no spread.

        Raises:
            ValueError: There is no score, or one is not a number from 0 to 1.
        """
        sampling = sampling or Sampling()
        scores = [to_array(base_scores), to_array(tuned_scores)]
        # Equal observations become one. `test` counts how often each was seen.
        (base, tuned), weights, test = sampling.build_test(scores, lowest=0.0, highest=1.0)
        is_binary = bool(np.isin([base, tuned], (0.0, 1.0)).all())
        built = cls(base, tuned, weights, test, is_simple=sampling.is_simple and is_binary)
        return built if built.base_score > 1e-12 and len(base_scores) > 1 else None

    @property
    def base_score(self) -> float:
        """The base's measured mean score."""
        return self._average(self.base_scores)

    @property
    def ratio(self) -> float:
        """The measured ratio."""
        return self._average(self.tuned_scores) / self.base_score

    @cached_property
    def change_test(self) -> EmpiricalLikelihoodTest:
        """The test of any change; for 0/1 answers of one kind it is less cautious than `test`."""
        is_flip = self.base_scores != self.tuned_scores
        return self.test.of_change(is_flip) if self.is_simple else self.test

    def p_value_above(self, threshold: float) -> float:
        """Compute the p-value of a true change of `threshold` points of the base or less."""
        return self._p_value_of(threshold, _LOWER)

    def p_value_below(self, threshold: float) -> float:
        """Compute the p-value of a true change of `threshold` points of the base or more."""
        return self._p_value_of(threshold, _HIGHER)

    def margin_interval(self, alpha: float = 2 * ALPHA) -> tuple[float, float]:
        """Return the interval of changes in points of the base, `alpha` / 2 at each end."""
        low, high = self.interval(alpha, self.test)
        return -high * self.base_score, -low * self.base_score

    def interval(
        self, alpha: float = ALPHA, test: EmpiricalLikelihoodTest | None = None
    ) -> tuple[float, float]:
        """Return the interval of the rates that are not ruled out.

        Args:
            alpha: The level; a rate is ruled out if its one-sided p-value is at most half of it.
            test: The test to invert; None: `change_test`. Budgets need the interval of `test`.

        Returns:
            Both ends; the lower one is -inf if it is not ruled out that the base scores 0.
        """
        test = test or self.change_test

        def find_p_values(angles: Floats) -> Floats:
            return self._p_values(angles, test)

        # Each ratio tuned / base is searched for as the angle of which it is the tangent. The lower
        # row leads from the measured angle down to 0 (the tuned model scores 0). The higher row
        # leads up to a right angle (the base scores 0). So the measured ratio is in the interval.
        measured = atan(self.ratio)
        limits = np.array([0.0, pi / 2])
        angles = np.linspace([measured, measured], limits, 17, axis=1)  # [2, 17], with 16 steps
        # In each row, the first step that ends at an angle that is ruled out holds the end of the
        # interval. If no angle of the row is ruled out, `argmax` is 0, and the limit is taken.
        is_ruled_out = find_p_values(angles[:, 1:]) <= alpha / 2  # [2, 16], where each step ends
        step, rows = is_ruled_out.argmax(axis=1), [_LOWER, _HIGHER]
        kept, ruled_out = angles[rows, step], angles[rows, step + 1]  # where this step begins, ends
        ends = test.find_ends(find_p_values, starts=ruled_out, ends=kept, alpha=alpha / 2)
        lowest_angle, highest_angle = np.where(is_ruled_out.any(axis=1), ends, limits)
        # The rate is 1 - the ratio, so the highest angle is that of the lowest rate.
        is_base_0_possible = highest_angle > pi / 2 - 1e-6
        lowest_rate = -np.inf if is_base_0_possible else float(1 - np.tan(highest_angle))
        return lowest_rate, float(1 - np.tan(lowest_angle))

    def _p_value_of(self, threshold: float, row: int) -> float:
        """Compute the p-value of what `_p_values` claims in a row, at the ratio of a threshold."""
        angles = np.full((2, 1), atan(max(0.0, 1 + threshold / self.base_score)))
        return float(self._p_values(angles, self.test)[row, 0])

    def _p_values(self, angles: Floats, test: EmpiricalLikelihoodTest) -> Floats:
        """Compute the one-sided p-value of each ratio tuned / base, which is given by its angle.

        The ratio of the means is tan(angle) if the mean of cos(angle) * tuned - sin(angle) * base
        is 0. So each observation gets that number, and the mean of the numbers is tested. It is
        claimed to lie above 0 in the lower row, which means that the true ratio is larger. In the
        higher row it is claimed to lie below 0.

        Args:
            angles: [2, points], a lower and a higher row. The tangents are the ratios.
            test: `change_test` or `test`. Its counts say how often each observation was seen.

        Returns:
            [2, points], the p-values.
        """
        # `p_values_of` tests for a mean above 0, so the numbers of the higher row change sign.
        # Both rows of angles become a column of factors, [2 * points, 1], so that a product with
        # the scores, [k], has a row for each angle.
        signs = np.array([[1.0], [-1.0]])
        tuned_factors = (signs * np.cos(angles)).reshape(-1, 1)
        base_factors = (-signs * np.sin(angles)).reshape(-1, 1)
        numbers = tuned_factors * self.tuned_scores + base_factors * self.base_scores
        # The lowest possible number: a score lies from 0 to 1, so a negative factor is lowest at a
        # score of 1, and a positive one at 0.
        lowest = np.minimum(tuned_factors, 0) + np.minimum(base_factors, 0)
        # A number counts by the weight of its observation. `test` was built for weights times
        # scores up to 1, so its `highest` is the largest weight.
        p_values = test.p_values_of(self.weights * numbers, test.highest * lowest.ravel())
        return p_values.reshape(angles.shape)

    def _average(self, scores: Floats) -> float:
        """Return the weighted mean of scores, [k], over all observations of the last look."""
        counts = self.test.counts[-1]
        return float(counts @ (self.weights * scores)) / float(counts.sum())


def forgetting_rate(
    base_scores: Floats, tuned_scores: Floats, sampling: Sampling | None = None
) -> Estimate | None:
    """Estimate which share of the base's score is gone, 1 - A_tuned / A_base; see `RatioTest`.

    Args:
        base_scores, tuned_scores: [n], scores from 0 to 1 of the same questions.
        sampling: How the questions were drawn.

    Returns:
        The rate with its 95 % interval; None if the base is not shown to score above 0.

    >>> base_scores = np.repeat([1.0, 0.0], [60, 40])
    >>> rate = forgetting_rate(base_scores, np.repeat([1.0, 0.0, 1.0], [30, 60, 10]))
    >>> round(rate.value, 3), round(rate.low, 3), round(rate.high, 3)
    (0.333, 0.137, 0.496)
    """
    ratio_test = RatioTest.build(base_scores, tuned_scores, sampling)
    if ratio_test is None:
        return None
    low, high = ratio_test.interval()  # of the rate, 1 - ratio
    if np.isinf(low):  # a base of 0 is not ruled out
        return None
    # The standard error of a ratio (delta method) is that of the mean of tuned - ratio * base,
    # divided by the base's score. The weights have a mean of 1, so the plain mean of the weighted
    # residuals is their weighted mean. It is 0, so no mean is subtracted before they are squared.
    counts = ratio_test.test.counts[-1]  # of each distinct observation, in all
    unweighted = ratio_test.tuned_scores - ratio_test.ratio * ratio_test.base_scores
    residuals = ratio_test.weights * unweighted
    error_of_mean = sqrt(float(counts @ residuals**2)) / float(counts.sum())
    error = error_of_mean / ratio_test.base_score
    if (sampling and sampling.looks) or error < 1e-12:
        # A standard error knows nothing of earlier looks, and one of 0 would claim certainty.
        error = nan
    return Estimate(1 - ratio_test.ratio, error, low, high)
