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
# In the tests of 0/1 answers against a margin or a budget: of a change beyond it, and of one within
_ADDED_BEYOND, _ADDED_WITHIN, _LEAST_ADDED_WITHIN = 0.4, 0.5, 0.2
_ADDED_WITHOUT_FLIPS = 0.7  # within, where no answer flipped to the side of the claim
_MANY_FLIPS = 25  # both ways; so many halve what is added
_LARGEST_MARGIN = 0.1  # up to which these are enough; from twice as much on a whole one is added
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

    A test adds answers in favor of the null hypothesis, so that few answers claim less.

    These are about the least that keep the error at most as large as the level, by exact
    enumeration (`python -m bench.statistics`, "smaller additions"). What is added makes up for the
    coarse steps of counts. So a table with one kind of flips takes the most, and one with many of
    both kinds the least. A margin above 10 points needs more.

    Args:
        thresholds: Shares, as seen from the side that is claimed. -0.1 stands for the claim that a
            loss (or a gain) is smaller than 10 points, 0.1 for the claim that it is larger.
        favorable: answers that flipped to the side of the claim, such as gained ones where a loss
            is claimed to be within a budget.
        adverse: answers that flipped to the other side.
        n: all answers.
    """
    # For the claim that a change is smaller than the threshold.
    flips_both_ways = np.minimum(favorable, adverse)
    within = _ADDED_WITHIN / (1 + np.divide(flips_both_ways, _MANY_FLIPS))
    within = np.maximum(_LEAST_ADDED_WITHIN, within)
    within = np.where(np.equal(favorable, 0), _ADDED_WITHOUT_FLIPS, within)
    # Above the largest margin, what is added grows up to a whole answer.
    share_of_growth = np.clip(np.abs(thresholds) / _LARGEST_MARGIN - 1, 0.0, 1.0)
    within = within + (PSEUDO_ANSWERS - within) * share_of_growth
    added = np.where(np.less(thresholds, 0), within, _ADDED_BEYOND)
    # If so many answers flip that their share exceeds this number, that share is added: the test is
    # coarser there, as that of a change is (`added_to_change`).
    return np.asarray(np.maximum(added, np.divide(favorable + adverse, n)))


def likelihood_p_values(
    excess: Floats, counts: Floats, least: Floats | float, added: Floats | float = PSEUDO_ANSWERS
) -> Floats:
    """Compute one-sided p-values, by row: how likely is so large a mean if the true one is <= 0?

    The signed root of twice the log likelihood ratio is treated as standard normal.

    Args:
        excess: [rows, k] or [k], k distinct numbers: by how much they exceed a threshold.
        counts: [rows, k] or [k], how often each was seen.
        least: [rows] or one number, the lowest that such a number can be.
        added: [rows] or one number, how many answers are added, at the lowest number.

    Returns:
        [rows], a p-value each.
    """
    root, _, _ = _fit_mean_0(excess, counts, least, added)
    return np.asarray(scipy.special.ndtr(-root), dtype=float)


def null_spread(excess: Floats, counts: Floats, least: float) -> float:
    """Compute the standard deviation of one number in the likeliest distribution of mean 0."""
    _, x, weights = _fit_mean_0(excess, counts, least, PSEUDO_ANSWERS)
    return float(np.sqrt((weights * x**2).sum() / weights.sum()))


def _fit_mean_0(
    excess: Floats, counts: Floats, least: Floats | float, added: Floats | float
) -> tuple[Floats, Floats, Floats]:
    """Find the likeliest distribution of mean 0 on each row's numbers, the added one with them.

    Of the number x_k, n_k of N answers were seen. Each gets a share w_k; the likeliest shares under
    which the mean is 0 maximize sum n_k log w_k, given sum w_k = 1 and sum w_k x_k = 0. Lagrange's
    multipliers give (Owen 1988)

        w_k = n_k / (N (1 + t x_k)),  where the tilt t solves  sum n_k x_k / (1 + t x_k) = 0.

    Without the condition on the mean w_k = n_k / N, so twice the log likelihood ratio is
    2 sum n_k log(1 + t x_k). Its root gets the sign of t, which is that of the mean.

    Args:
        excess: The numbers x_k of each row, [rows, numbers] or one row for all.
        counts: How often each was seen, likewise.
        least: The number that is added to each row: the least possible one.
        added: How often it is added.

    Returns:
        Three arrays with a row for each row of numbers:

        - The signed root of twice the log likelihood ratio. It is -inf if no number lies above 0,
          and +inf if none can lie below 0.
        - The numbers x_k, the added one as the last.
        - Their weights N w_k.
    """
    excess, counts = np.broadcast_arrays(np.atleast_2d(excess), np.atleast_2d(counts))
    least = np.broadcast_to(least, len(counts))[:, None]
    added = np.broadcast_to(added, len(counts))[:, None]
    x = np.append(excess, least, axis=1)
    counts = np.append(counts, added, axis=1)
    x = np.where(counts > 0, x, 0.0)  # a number that was not seen does not count
    # Without a number above 0, a mean of 0 or less is the likeliest.
    is_likeliest = x.max(axis=1) <= 0
    # If not even the added number lies below 0, such a mean is impossible.
    is_impossible = least[:, 0] >= 0
    has_both_signs = ~(is_likeliest | is_impossible)
    x = np.where(has_both_signs[:, None], x, 0.0)
    tilt = _find_tilt(x, counts, has_both_signs)
    divisors = 1 + tilt[:, None] * x
    log_ratio = (counts * np.log(divisors)).sum(axis=1)
    root = np.copysign(np.sqrt(2 * np.maximum(log_ratio, 0.0)), tilt)
    root = np.where(is_likeliest, -np.inf, np.where(is_impossible, np.inf, root))
    return root, x, counts / divisors


def _find_tilt(x: Floats, counts: Floats, has_both_signs: NDArray[np.bool_]) -> Floats:
    """Solve g(t) = sum n_k x_k / (1 + t x_k) = 0 for the tilt t of each row, see `_fit_mean_0`.

    All shares are positive only between the ends t = -1 / max x and t = -1 / min x; at each end one
    share is infinite. In between g falls, as g' = -sum n_k (x_k / (1 + t x_k))^2. So the sign of g
    tells on which side of t the solution lies, and the bracket around it shrinks.

    Newton's step is t - g / g'. Where it leaves the bracket, t moves towards the end instead: its
    new distance from the end is the geometric mean of its old one and that of the bracket's bound,
    because near an end t must come nearer by orders of magnitude.

    Args:
        x: The numbers, [rows, k].
        counts: How often each was seen, [rows, k].
        has_both_signs: [rows], marks the rows with numbers on both sides of 0. For the others, t is
            0.
    """
    low_end = -1 / np.where(has_both_signs, x.max(axis=1), 1.0)
    high_end = -1 / np.where(has_both_signs, x.min(axis=1), 1.0)
    # No share w_k exceeds 1, so each 1 + t x_k is at least n_k / N: t stays away from the ends.
    fewest = np.where(counts > 0, counts, np.inf).min(axis=1)
    inner_share = 1 - fewest / counts.sum(axis=1)
    low, high = low_end * inner_share, high_end * inner_share  # the bracket
    tilt = np.zeros(len(x))
    for _ in range(_STEPS):
        terms = x / (1 + tilt[:, None] * x)
        slope = np.einsum("rk,rk->r", counts, terms)  # g
        curve = np.einsum("rk,rk,rk->r", counts, terms, terms)  # -g'
        is_up = slope > 0
        low, high = np.where(is_up, tilt, low), np.where(is_up, high, tilt)
        next_tilt = tilt + slope / np.maximum(curve, 1e-300)  # Newton's step
        is_inside = (low <= next_tilt) & (next_tilt <= high)
        if not is_inside.all():
            end = np.where(is_up, high_end, low_end)
            bound = np.where(is_up, high, low)
            halfway = end - np.where(is_up, 1, -1) * np.sqrt((end - tilt) * (end - bound))
            next_tilt = np.where(is_inside, next_tilt, halfway)
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
        added = self.count_added(thresholds, side=1)
        return self.p_values_of(self.values - thresholds[:, None], self.lowest - thresholds, added)

    def p_values_below(self, thresholds: Floats) -> Floats:
        """Compute one-sided p-values; null hypothesis: the mean is a threshold or more."""
        added = self.count_added(thresholds, side=-1)
        return self.p_values_of(thresholds[:, None] - self.values, thresholds - self.highest, added)

    def count_added(self, thresholds: Floats, side: int) -> Floats:
        """Return the pseudo-answers, [thresholds, looks].

        Args:
            thresholds: Of a one-sided test.
            side: 1: the claim is a change above the threshold; -1: below it.
        """
        shape = len(thresholds), len(self.counts)
        if not self.is_margin:
            return np.broadcast_to(self.added, shape)
        favorable = self.counts[:, side * self.values > 0].sum(axis=1)
        adverse = self.counts[:, side * self.values < 0].sum(axis=1)
        n = self.counts.sum(axis=1)
        return self.step * added_to_margin(side * thresholds[:, None], favorable, adverse, n)

    def interval(self, lowest: float, highest: float, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the interval of means that are not ruled out, with half of alpha at each end.

        Each end is the first mean, from `lowest` or from `highest`, that is not ruled out. If looks
        contradict each other the ends may cross; they are then swapped.

        Args:
            lowest, highest: Where the search begins at each end; the mean cannot lie beyond.
            alpha: The two-sided level.
        """

        def find_p_values(points: Floats) -> Floats:
            """Test that the mean lies above points[0], and that it lies below points[1].

            Both sides are tested in one call, which takes less time than two.
            """
            above, below = points
            excess = np.append(self.values - above[:, None], below[:, None] - self.values, axis=0)
            least = np.append(self.lowest - above, below - self.highest)
            added = np.append(self.count_added(above, 1), self.count_added(below, -1), axis=0)
            return self.p_values_of(excess, least, added).reshape(points.shape)

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

        Args:
            p_values: Computes them for thresholds, [rows, points].
            starts: Where each search begins, and its result where nothing is ruled out.
            ends: Where it ends.
            alpha: A threshold is ruled out if its p-value is at most this.

        Returns:
            [rows], that threshold. It is exact to about 7 digits of the distance to the end.
        """
        # With few numbers, NumPy takes as long for 63 points as for 15, so fewer calls are made.
        most = 63 if self.counts.size <= _FEW_NUMBERS else 15
        n_points = max(1, min(most, _MOST_NUMBERS // self.counts.size))
        n_points = n_points // 2 * 2 + 1  # odd: 0 is one of those from -1 to 1, and is tested
        rows = np.arange(len(starts))
        for _ in range(ceil(_BITS / log2(n_points + 1))):
            # The search goes on between the last point that is ruled out and the next one. The end
            # counts as kept, so `argmax` finds a kept point in each row.
            points = np.linspace(starts, ends, n_points + 2, axis=1)
            is_kept = p_values(points[:, 1:-1]) > alpha
            is_kept = np.append(is_kept, np.ones((len(rows), 1), dtype=bool), axis=1)
            n_ruled_out = is_kept.argmax(axis=1)
            starts, ends = points[rows, n_ruled_out], points[rows, n_ruled_out + 1]
        return np.asarray(starts)

    def p_values_of(self, excess: Floats, least: Floats, added: Floats | None = None) -> Floats:
        """Compute a p-value for each row of other numbers; null hypothesis: their mean is <= 0.

        Args:
            excess: [rows, k], the numbers in place of `values`; they were seen as often.
            least: [rows], the lowest that each row's numbers can be.
            added: [rows, looks], the pseudo-answers; None: those of the test.

        Returns:
            [rows]; after several looks each p-value holds at whichever look you stop.
        """
        n_looks = len(self.counts)
        pseudo_answers = self.added if added is None else added
        p_values = likelihood_p_values(  # for each row, at each look
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
