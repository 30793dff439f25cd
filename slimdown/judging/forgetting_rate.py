"""The forgetting rate: the share of the base's score that is gone, its test and its interval."""

from dataclasses import dataclass
from functools import cached_property
from math import atan, atan2, nan, pi, sqrt

import numpy as np

from slimdown.stats.estimates import Estimate, Sampling, to_array
from slimdown.stats.likelihood import ALPHA, EmpiricalLikelihoodTest
from slimdown.stats.sequential import Floats

_LOWER, _HIGHER = 0, 1  # the side of a ratio on which the truth may lie


@dataclass(frozen=True)
class RatioTest:
    """The test of the ratio tuned / base, which is 1 - the forgetting rate.

    The rate is that of "Slimming Down LLMs Without Losing Their Minds" (2025), section 2.4: a share
    of 1, below 0 for a gain. A rate r is ruled out if tuned - (1 - r) base is shown not to be 0 on
    average. The interval holds the rates that are not ruled out, as Fieller's (1954) does. For
    budgets, the test has the methods of `Difference`: a change is then minus the rate times the
    measured base score.
    """

    before: Floats  # [k], distinct scores of questions or clusters
    after: Floats
    weights: Floats
    test: EmpiricalLikelihoodTest  # of a score from 0 to 1; its counts are those of the k scores
    is_simple: bool  # whether each is one 0/1 answer of one kind
    has_looks: bool

    @classmethod
    def build(
        cls, before: Floats, after: Floats, sampling: Sampling | None = None
    ) -> "RatioTest | None":
        """Build the test; None if the base scored 0 on average, or one question was asked.

        A base of 0 has no ratio, and one question has no spread.

        Args:
            before, after: [n], scores from 0 to 1 of the same questions.
            sampling: How the questions were drawn; None: equal weights, one look.

        Raises:
            ValueError: There is no score, or one is not a number from 0 to 1.
        """
        sampling = sampling or Sampling()
        columns = [to_array(before), to_array(after)]
        distinct, weights, test = sampling.build_test(columns, lowest=0.0, highest=1.0)
        is_binary = bool(np.isin(distinct, (0.0, 1.0)).all())
        built = cls(
            before=distinct[0],
            after=distinct[1],
            weights=weights,
            test=test,
            is_simple=sampling.is_simple and is_binary,
            has_looks=bool(sampling.looks),
        )
        return built if len(before) > 1 and built.base > 1e-12 else None

    @property
    def base(self) -> float:
        """The base's measured score."""
        return self._average(self.before)

    @property
    def rate(self) -> float:
        """The measured rate."""
        return 1 - self._average(self.after) / self.base

    @cached_property
    def change_test(self) -> EmpiricalLikelihoodTest:
        """The test of any change; for 0/1 answers of one kind it is less cautious than `test`."""
        return self.test.of_change(self.before != self.after) if self.is_simple else self.test

    def p_value_above(self, threshold: float) -> float:
        """Compute the p-value of a true change of `threshold` points of the base or less."""
        return self._p_value_of(threshold, _LOWER)

    def p_value_below(self, threshold: float) -> float:
        """Compute the p-value of a true change of `threshold` points of the base or more."""
        return self._p_value_of(threshold, _HIGHER)

    def margin_interval(self, alpha: float = 2 * ALPHA) -> tuple[float, float]:
        """Return the interval of changes in points of the base, `alpha` / 2 at each end."""
        low, high = self.interval(alpha, self.test)
        return -high * self.base, -low * self.base

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

        # The ratio tuned / base is the tangent of an angle, from 0 (the tuned model scores 0) to a
        # right angle (the base scores 0). On each side, 16 steps lead outwards from the measured
        # angle to the limit. The end lies in the first step that ends at a ratio that is ruled out.
        measured = atan2(1 - self.rate, 1.0)
        limits = (0.0, pi / 2)
        angles = np.linspace((measured, measured), limits, 17, axis=1)
        is_ruled_out = find_p_values(angles[:, 1:]) <= alpha / 2  # [2, 16], at the end of each step
        first = is_ruled_out.argmax(axis=1)  # 0 if no angle is; then the limit is taken below
        sides = np.arange(2)
        kept, ruled_out = angles[sides, first], angles[sides, first + 1]  # the ends of the step
        ends = test.find_ends(find_p_values, starts=ruled_out, ends=kept, alpha=alpha / 2)
        lowest, highest = np.where(is_ruled_out.any(axis=1), ends, limits)
        # A large ratio is a small rate, so the ends change sides.
        low = -np.inf if highest > pi / 2 - 1e-6 else float(1 - np.tan(highest))
        return low, float(1 - np.tan(lowest))

    def _p_value_of(self, threshold: float, side: int) -> float:
        """Compute the p-value of a true change beyond a threshold, on one side of the ratio."""
        angles = np.full((2, 1), atan(max(0.0, 1 + threshold / self.base)))
        return float(self._p_values(angles, self.test)[side, 0])

    def _p_values(self, angles: Floats, test: EmpiricalLikelihoodTest) -> Floats:
        """Compute one-sided p-values, [2, points], of true ratios at or beyond tangents of angles.

        The ratio of the means is tan(angle) if the mean of cos(angle) * after - sin(angle) * before
        is 0. So each question gets that number, and the mean of the numbers is tested.

        Args:
            angles: [2, points]: on the lower side of the measured ratio, and on the higher one.
            test: `change_test` or `test`. Its counts say how often each pair of scores was seen.
        """
        # [2, 1, 1]: the mean is tested to lie above 0 on the lower side, below 0 on the higher one
        signs = np.array([1.0, -1.0])[:, None, None]
        cosines, sines = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None]
        numbers = signs * (cosines * self.after - sines * self.before)  # [2, points, k]
        # How low such a number can be: scores lie from 0 to 1, and a linear function is lowest at a
        # corner of this square.
        corners_before, corners_after = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]])
        at_corners = signs * (cosines * corners_after - sines * corners_before)
        rows = (self.weights * numbers).reshape(-1, len(self.before))
        # The test was built for weighted scores up to 1, so `highest` is the largest weight.
        least = test.highest * at_corners.min(axis=2).ravel()
        return test.p_values_of(rows, least).reshape(angles.shape)

    def _average(self, values: Floats) -> float:
        counts = self.test.counts[-1]
        return float(counts @ (self.weights * values)) / float(counts.sum())


def forgetting_rate(
    before: Floats, after: Floats, sampling: Sampling | None = None
) -> Estimate | None:
    """Estimate which share of the base's score is gone, 1 - A_tuned / A_base; see `RatioTest`.

    Args:
        before, after: [n], scores from 0 to 1 of the same questions.
        sampling: how the questions were drawn.

    Returns:
        The rate with its 95 % interval; None if the base is not shown to score above 0.

    >>> before = np.repeat([1.0, 0.0], [60, 40])
    >>> rate = forgetting_rate(before, np.repeat([1.0, 0.0, 1.0], [30, 60, 10]))
    >>> round(rate.value, 3), round(rate.low, 3), round(rate.high, 3)
    (0.333, 0.137, 0.496)
    """
    test = RatioTest.build(before, after, sampling)
    if test is None:
        return None
    low, high = test.interval()
    if np.isinf(low):  # a base of 0 is not ruled out
        return None
    counts = test.test.counts[-1]  # at the last look, which has all questions
    # The standard error of a ratio: that of the residuals' mean, divided by the base's score.
    residuals = test.weights * (test.after - test.before * (1 - test.rate))
    error = sqrt(float(counts @ residuals**2)) / float(counts.sum()) / test.base
    if test.has_looks or error < 1e-12:
        # A standard error knows nothing of earlier looks, and one of 0 would claim certainty.
        error = nan
    return Estimate(test.rate, error, low, high)
