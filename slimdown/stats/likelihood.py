"""The one test of slimdown: the empirical likelihood ratio of a mean.

Empirical likelihood (Owen 1988) tests the mean of bounded numbers. It assumes only that questions
are independent and that each number has a lowest and a highest value. For 0/1 answers it is the
likelihood ratio of the table of lost and gained answers. The interval is the inversion of the test,
so the two cannot contradict each other; verdicts are corrected for several benchmarks besides. The
test of a change is two-sided at 5 % and has the 95 % interval. Those of `retained` and of budgets
are one-sided at 5 % on each side and have the 90 % interval. One answer is added in favor of the
null hypothesis; of 0/1 answers less than one is enough (`added_to_change`, `added_to_margin`).
docs/studies/statistics.md has the error rates, by exact enumeration.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from slimdown.stats.sequential import Floats, combine_looks

ALPHA = 0.05
# Answers added in favor of the null hypothesis, at the extreme value (the idea: Chen, Variyath and
# Abraham 2008).
PSEUDO_ANSWERS = 1.0
ADDED_TO_CHANGE = 0.5  # at least, in the two-sided test of a change of 0/1 answers
_STEPS = 100  # at most; the search doubles its digits at each step, so it ends after about ten
_BITS = 24  # of precision for the end of an interval
_MOST_NUMBERS = 200_000  # worked on at once
_FEW_NUMBERS = 16  # of a test: 0/1 answers have three, at each look


def added_to_change(flips: NDArray[Any] | float, n: NDArray[Any] | float) -> Floats:
    """Return how many answers the two-sided test of a change of 0/1 answers adds: half of one.

    It adds up to one if more than half of all answers flip: fewer outcomes are left there, so the
    test is coarser.

    Args:
        flips: answers that changed.
        n: all answers.
    """
    return np.asarray(np.maximum(ADDED_TO_CHANGE, flips / n))


def added_to_margin(
    thresholds: Floats | float,
    favorable: NDArray[Any] | float,
    adverse: NDArray[Any] | float,
    n: NDArray[Any] | float,
) -> Floats:
    """Return how many 0/1 answers the one-sided test against a margin or a budget adds.

    The test adds them in favor of the null hypothesis, to make up for the coarse steps of counts.

    - To claim a change that is larger than the threshold, it adds 0.4 of an answer.
    - To claim a smaller one, it adds 0.7 if no answer flipped to the side of the claim, else 0.5.
      Many flips both ways make the steps finer: with 25 each way half of 0.5 is enough, and with
      many more 0.2. A threshold above 10 points needs more: one answer from 20 points on.
    - In both cases it adds at least the share of answers that flipped. This matters where about
      half of them flip or more, for the steps are coarser there.

    These are about the smallest numbers that keep the error at most as large as the level, by exact
    enumeration (`python -m bench.statistics`, "smaller additions").

    Args:
        thresholds: Shares, as seen from the side that is claimed. -0.1 stands for the claim that a
            loss (or a gain) is smaller than 10 points, 0.1 for the claim that it is larger.
        favorable: Answers that flipped to the side of the claim, such as gained ones where a loss
            is claimed to be within a budget.
        adverse: Answers that flipped to the other side.
        n: All answers.
    """
    # To claim a change that is smaller than the threshold:
    flips_both_ways = np.minimum(favorable, adverse)
    added_within = np.maximum(0.2, 0.5 / (1 + flips_both_ways / 25))
    added_within = np.where(np.equal(favorable, 0), 0.7, added_within)
    growth = np.clip(np.abs(thresholds) / 0.1 - 1, 0.0, 1.0)  # 0 up to 10 points, 1 from 20 on
    added_within = added_within + (PSEUDO_ANSWERS - added_within) * growth
    added = np.where(np.less(thresholds, 0), added_within, 0.4)
    share_of_flips = np.divide(favorable + adverse, n)
    return np.asarray(np.maximum(added, share_of_flips))


def likelihood_p_values(
    excess: Floats, counts: Floats, least: Floats | float, added: Floats | float = PSEUDO_ANSWERS
) -> Floats:
    """Compute one-sided p-values, by row: how likely is so large a mean if the true one is <= 0?

    The likelihood ratio compares two distributions on the numbers of a row. In one, each has the
    share that was seen; the other is the likeliest of those whose mean is 0 (`_find_tilt`). The
    root of twice the log ratio gets the sign of the mean and is treated as standard normal.

    Args:
        excess: [rows, k] or [k], k distinct numbers: by how much they exceed a threshold.
        counts: [rows, k] or [k], how often each was seen.
        least: [rows] or one number, the lowest that such a number can be.
        added: [rows] or one number, how many answers are added, at the lowest number. They speak
            for a mean of 0 or less: a few answers may not show the low numbers that are possible,
            and would else claim a mean above 0 too often.

    Returns:
        [rows], a p-value each.
    """
    excess, counts = np.broadcast_arrays(np.atleast_2d(excess), np.atleast_2d(counts))
    least = np.broadcast_to(least, len(counts))[:, None]
    added = np.broadcast_to(added, len(counts))[:, None]
    x = np.append(excess, least, axis=1)
    counts = np.append(counts, added, axis=1)
    x = np.where(counts > 0, x, 0.0)  # a number that was not seen does not count
    # Without a number above 0, a mean of 0 or less is the likeliest, so the p-value is 1. If not
    # even the added number lies below 0, such a mean is impossible, so it is 0.
    p_values = np.where(x.max(axis=1) <= 0, 1.0, 0.0)
    has_both_signs = (x.min(axis=1) < 0) & (x.max(axis=1) > 0)
    x, counts = x[has_both_signs], counts[has_both_signs]
    # A number x that was seen n times of N has the share n / N in the one distribution, and
    # n / (N (1 + tilt x)) in the other, so 1 + tilt x is their ratio. The tilt has the sign of the
    # mean that was seen (see `_find_tilt`).
    tilt = _find_tilt(x, counts)
    log_ratio = (counts * np.log(1 + tilt[:, None] * x)).sum(axis=1)
    root = np.copysign(np.sqrt(2 * np.maximum(log_ratio, 0.0)), tilt)
    p_values[has_both_signs] = scipy.special.ndtr(-root)
    return p_values


def null_spread(x: Floats, counts: Floats) -> float:
    """Compute the standard deviation of a number in the likeliest distribution of mean 0.

    Args:
        x: [k], the numbers; some lie below 0 and some above.
        counts: [k], how often each was seen.
    """
    tilt = _find_tilt(x[None], counts[None])[0]
    weights = counts / (1 + tilt * x)
    return float(np.sqrt((weights * x**2).sum() / weights.sum()))


def _find_tilt(x: Floats, counts: Floats) -> Floats:
    """Find for each row the tilt t of the likeliest distribution of mean 0 on its numbers.

    The number x_k was seen n_k times, all numbers N times. The likeliest shares w_k of mean 0
    maximize sum n_k log w_k, given sum w_k = 1 and sum w_k x_k = 0. Lagrange's multipliers give
    (Owen 1988)

        w_k = n_k / (N (1 + t x_k)).

    Without the condition on the mean, w_k is n_k / N. So the log likelihood ratio is
    L(t) = sum n_k log(1 + t x_k). Its slope is N times the mean, sum n_k x_k / (1 + t x_k), and so
    0 at the solution. The slope falls with t, as L is concave. So its sign tells on which side of t
    the solution lies, and the bracket around the solution shrinks.

    All shares are positive only between two ends, t = -1 / max x and t = -1 / min x. Where Newton's
    step leaves the bracket, t moves towards the end instead, by orders of magnitude if it must.

    Args:
        x: [rows, k], the numbers; in each row some lie below 0 and some above.
        counts: [rows, k], how often each was seen. A number that was not seen is 0.

    Returns:
        [rows], t. Its sign is that of the mean that was seen.
    """
    low_end, high_end = -1 / x.max(axis=1), -1 / x.min(axis=1)
    # No share w_k exceeds 1, so each 1 + t x_k is at least n_k / N: t stays away from the ends.
    fewest = np.where(counts > 0, counts, np.inf).min(axis=1)
    inner_share = 1 - fewest / counts.sum(axis=1)
    low, high = low_end * inner_share, high_end * inner_share  # the bracket
    tilt = np.zeros(len(x))
    for _ in range(_STEPS):
        terms = x / (1 + tilt[:, None] * x)
        slope = np.einsum("rk,rk->r", counts, terms)
        steepness = np.einsum("rk,rk,rk->r", counts, terms, terms)  # by which the slope falls
        is_up = slope > 0  # whether the solution lies above t
        low, high = np.where(is_up, tilt, low), np.where(is_up, high, tilt)
        next_tilt = tilt + slope / np.maximum(steepness, 1e-300)  # Newton's step, never by 0
        is_inside = (low <= next_tilt) & (next_tilt <= high)
        if not is_inside.all():
            end, bound = np.where(is_up, high_end, low_end), np.where(is_up, high, low)
            # The new distance of t from the end is the geometric mean of its old one, end - tilt,
            # and that of the bracket's bound, end - bound. From the end, t lies towards 0.
            distance = np.sqrt((end - tilt) * (end - bound))
            next_tilt = np.where(is_inside, next_tilt, end - np.copysign(distance, end))
        is_done = np.abs(next_tilt - tilt) <= 1e-9 * np.abs(next_tilt)
        tilt = next_tilt
        if is_done.all():
            break
    return tilt


@dataclass(frozen=True, eq=False)
class EmpiricalLikelihoodTest:
    """Tests of the mean of independent numbers between two bounds, at one look or at several."""

    values: Floats  # [k], distinct
    counts: Floats  # [looks, k], how often each was seen by each look
    lowest: float
    highest: float
    plan: tuple[int, ...] = ()  # questions at all looks, past and to come; empty: one look
    n_skipped_looks: int = 0  # looks, the first ones, at which nothing is claimed
    added: Floats | float = PSEUDO_ANSWERS  # pseudo-answers, for all looks or by look
    # Whether the numbers are changes of 0/1 answers of one kind, or their means over seeds, tested
    # against margins: then `added_to_margin` says how many are added, and `step` how much they move
    # at a time, a share of one answer.
    is_margin: bool = False
    step: float = 1.0

    def p_values_above(self, thresholds: Floats) -> Floats:
        """Compute one-sided p-values; null hypothesis: the mean is a threshold or less."""
        return self._p_values_beyond(thresholds, np.full(len(thresholds), 1))

    def p_values_below(self, thresholds: Floats) -> Floats:
        """Compute one-sided p-values; null hypothesis: the mean is a threshold or more."""
        return self._p_values_beyond(thresholds, np.full(len(thresholds), -1))

    def _p_values_beyond(self, thresholds: Floats, sides: NDArray[np.int_]) -> Floats:
        """Compute a one-sided p-value for each threshold.

        Args:
            thresholds: [rows].
            sides: [rows], 1: the claim is a mean above the threshold; -1: below it.
        """
        excess = sides[:, None] * (self.values - thresholds[:, None])
        least = np.where(sides > 0, self.lowest - thresholds, thresholds - self.highest)
        return self.p_values_of(excess, least, self._count_added(thresholds, sides))

    def _count_added(self, thresholds: Floats, sides: NDArray[np.int_]) -> Floats:
        """Return how many answers the tests of `_p_values_beyond` add, [rows, looks]."""
        if not self.is_margin:
            return np.broadcast_to(self.added, (len(thresholds), len(self.counts)))
        lost = self.counts[:, self.values < 0].sum(axis=1)
        gained = self.counts[:, self.values > 0].sum(axis=1)
        is_gain = sides[:, None] > 0  # whether gained answers are in favor of the claim
        favorable, adverse = np.where(is_gain, gained, lost), np.where(is_gain, lost, gained)
        thresholds = (sides * thresholds)[:, None]  # as seen from the side of the claim
        return self.step * added_to_margin(thresholds, favorable, adverse, self.counts.sum(axis=1))

    def interval(self, lowest: float, highest: float, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the lower and the upper end of the interval of means that are not ruled out.

        Half of alpha is for each end. At the lower end, means are ruled out if the true mean is
        shown to lie above them; at the upper end, if it is shown to lie below them. If looks
        contradict each other the ends may cross; they are then swapped.

        Args:
            lowest, highest: Where the search begins at each end; the mean cannot lie beyond.
            alpha: The two-sided level.
        """

        def find_p_values(points: Floats) -> Floats:
            """Test the points of the lower end, points[0], and those of the upper, points[1]."""
            # In one call, which takes less time than two.
            sides = np.repeat([1, -1], points.shape[1])
            return self._p_values_beyond(points.ravel(), sides).reshape(points.shape)

        low, high = self.find_ends(
            find_p_values, starts=(lowest, highest), ends=(highest, lowest), alpha=alpha / 2
        )
        return float(min(low, high)), float(max(low, high))

    def find_ends(
        self,
        p_values: Callable[[Floats], Floats],
        starts: Sequence[float] | Floats,
        ends: Sequence[float] | Floats,
        alpha: float,
    ) -> Floats:
        """Search each row from its start to its end for the last threshold that is ruled out.

        Each pass tests points at equal distances. The next pass goes on between the first point
        that is kept and the point before it.

        Args:
            p_values: Returns the p-value of each threshold. It takes and gives [rows, points].
            starts: [rows], where each search begins, and its result where nothing is ruled out.
            ends: [rows], where it ends.
            alpha: A threshold is ruled out if its p-value is at most this, and kept otherwise.

        Returns:
            [rows], that threshold. It is exact to about 7 digits of the distance to the end.
        """
        # With few numbers, NumPy takes as long for 63 points as for 15, so fewer passes are made.
        most = 63 if self.counts.size <= _FEW_NUMBERS else 15
        n_points = max(1, min(most, _MOST_NUMBERS // self.counts.size))
        # An odd number has a point in the middle: 0, if the search is between -1 and 1. So 0 itself
        # is tested, and the interval has it exactly if the test of no change does not rule it out.
        n_points = n_points // 2 * 2 + 1
        n_passes = ceil(_BITS / log2(n_points + 1))  # each divides the distance by n_points + 1
        rows = np.arange(len(starts))
        for _ in range(n_passes):
            points = np.linspace(starts, ends, n_points + 2, axis=1)
            # Without a test, the start counts as ruled out and the end as kept.
            is_kept = np.ones(points.shape, dtype=bool)
            is_kept[:, 0] = False
            is_kept[:, 1:-1] = p_values(points[:, 1:-1]) > alpha
            first_kept = is_kept.argmax(axis=1)
            starts, ends = points[rows, first_kept - 1], points[rows, first_kept]
        return np.asarray(starts)

    def p_values_of(self, excess: Floats, least: Floats, added: Floats | None = None) -> Floats:
        """Compute a p-value for each row of other numbers; null hypothesis: their mean is <= 0.

        Args:
            excess: [rows, k], the numbers in place of `values`. By each look they were seen as
                often as those, see `counts`, [looks, k].
            least: [rows], the lowest that each row's numbers can be.
            added: [rows, looks], the pseudo-answers; None: those of the test.

        Returns:
            [rows]; after several looks each p-value holds at whichever look you stop.
        """
        n_looks = len(self.counts)
        pseudo_answers = self.added if added is None else added
        # Each row is tested at each look: [rows * looks], the looks of the first row come first.
        p_values = likelihood_p_values(
            np.repeat(excess, n_looks, axis=0),
            np.tile(self.counts, (len(least), 1)),
            np.repeat(least, n_looks),
            np.broadcast_to(pseudo_answers, (len(least), n_looks)).ravel(),
        )
        p_values = p_values.reshape(-1, n_looks)
        p_values[:, : self.n_skipped_looks] = 1.0  # nothing is claimed there
        return combine_looks(p_values, self.plan)

    def of_change(self, is_flip: NDArray[np.bool_]) -> "EmpiricalLikelihoodTest":
        """Return the two-sided test of a change of 0/1 answers; `is_flip`, [k], marks changes."""
        flips = self.counts[:, is_flip].sum(axis=1)
        added = added_to_change(flips, self.counts.sum(axis=1))
        return replace(self, added=added, is_margin=False)
