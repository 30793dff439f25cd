"""Power: how large a change some questions show, and how many questions a change needs.

Changes, margins and spreads are shares. "Show" means in four of five repetitions: 80 % power.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from math import inf, isnan, nan, sqrt
from typing import Protocol

import numpy as np
import scipy
from numpy.typing import NDArray

from slimdown.stats.estimates import Difference
from slimdown.stats.likelihood import (
    ALPHA,
    PSEUDO_ANSWERS,
    added_to_change,
    added_to_margin,
    likelihood_p_values,
    null_spread,
)
from slimdown.stats.sequential import EARLY_SHARE, Floats, share_error

POWER = 0.8
_MOST = 10**6  # questions; larger numbers are not named


class FindReach(Protocol):
    """Finds how far a mean must lie from a threshold to be shown beyond it."""

    def __call__(self, n: int, threshold: float, side: int, alpha: float) -> float:
        """Return the distance.

        Args:
            n: How many answers there are to be.
            threshold: A change, as a share.
            side: 1 if the mean is to be shown above the threshold, -1 if below.
            alpha: The level of the one-sided test.
        """


def minimum_detectable_change(difference: Difference, alpha: float = ALPHA) -> float:
    """Compute the smallest true change that this many questions show; nan if they show none.

    "Show" means with 80 % power. The share of answers that change is the measured one, or more if
    the change itself needs more. After several looks, the change is one that the last look so far
    shows. The earlier looks, which might have shown it, are left out.

    Args:
        difference: of the questions.
        alpha: of the two-sided test, after its correction for other benchmarks.
    """
    plan = difference.test.plan
    if isnan(difference.spread):
        return nan
    if plan:  # the last look so far has only its share of the error
        alpha *= float(share_error(plan)[len(difference.sampling.looks) - 1])
    if _has_single_answers(difference):
        return _find_least_change(difference, alpha)
    n = len(difference.observations)
    # In 80 % of repetitions, the measured mean lies at most this far below the true one.
    shortfall = float(scipy.special.ndtri(POWER)) * difference.spread / sqrt(n)
    smallest = _find_reach(difference, n, threshold=0.0, alpha=alpha / 2) + shortfall
    return smallest if smallest <= 1 else nan


def _has_single_answers(difference: Difference) -> bool:
    """Whether each observation is one 0/1 answer, and all weigh the same."""
    return difference.has_independent_answers and difference.sampling.weights is None


def _find_least_change(difference: Difference, alpha: float) -> float:
    """Find the smallest change of 0/1 answers that has the power; nan where none has."""
    n, is_simple = difference.n, difference.sampling.is_simple
    discordant = (np.count_nonzero(difference.changes) + 1) / (n + 2)
    if change_power(n, 1.0, 1.0, alpha, is_simple) < POWER:
        return nan
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        power = change_power(n, middle, max(discordant, middle), alpha, is_simple)
        low, high = (low, middle) if power >= POWER else (middle, high)
    return high


def _find_reach(difference: Difference, n: int, threshold: float, alpha: float) -> float:
    """Find how far the mean of n observations must lie above a threshold to be shown above it.

    Half of the observations are assumed to lie one spread above their mean, and half one below.

    Args:
        difference: Of the observations so far.
        n: How many there are to be.
        threshold: A change, as a share; for example -0.1 to show that a loss is below 10 points.
        alpha: The level of the one-sided test.

    Returns:
        The distance, a share; inf where none is enough.
    """
    distances = np.geomspace(1e-5, 2.0, 81)
    excess = distances[:, None] + np.array([-difference.spread, difference.spread])
    lowest_excess = difference.test.lowest - threshold  # that an observation can have
    p_values = likelihood_p_values(excess, np.array([n / 2, n / 2]), lowest_excess)
    if not (p_values < alpha).any():
        return inf
    first_shown = int(np.argmax(p_values < alpha))
    if first_shown == 0:
        return float(distances[0])
    # Interpolate between the last distance that is not shown and the first that is. A p-value is
    # the normal probability of a root, and the root grows almost in a straight line.
    neighbours = slice(first_shown - 1, first_shown + 1)
    roots = -scipy.special.ndtri(np.maximum(p_values[neighbours], 1e-300))
    return float(np.interp(-scipy.special.ndtri(alpha), roots, distances[neighbours]))


def change_power(
    n: int, change: float, discordant: float, alpha: float, is_simple: bool = True
) -> float:
    """Compute the power: the chance that n 0/1 answers show a change.

    Args:
        n: How many answers there are.
        change: The true change, a share of them.
        discordant: The share of answers that flip, lost and gained ones together; above 0.
        alpha: The level of the two-sided test.
        is_simple: Whether all questions are of one kind, as in `Sampling`. The test then adds less.
    """
    # The numbers of flips that occur, without a millionth of their distribution at each end.
    ends = scipy.special.bdtrik([1e-6, 1 - 1e-6], n, discordant) if discordant < 1 else [n, n]
    flips = np.arange(max(0, int(ends[0])), min(n, int(ends[1]) + 1) + 1)
    added = added_to_change(flips, n) if is_simple else PSEUDO_ANSWERS
    critical = _find_critical_counts(flips, added, alpha)
    # A change is shown if the gained answers, or the lost ones, are at most the critical count.
    gained_share = (1 + change / discordant) / 2  # of the flips
    shown = scipy.special.bdtr(critical.astype(float), flips, gained_share)
    shown += scipy.special.bdtrc((flips - critical - 1).astype(float), flips, gained_share)
    # The binomial chance of each number of flips, as a logarithm: first that of the coefficient
    # "n choose flips".
    log_chances = -np.log(n + 1) - scipy.special.betaln(n - flips + 1, flips + 1)
    log_chances += scipy.special.xlogy(flips, discordant)
    log_chances += scipy.special.xlog1py(n - flips, -discordant)
    return float((np.exp(log_chances) * np.where(critical < 0, 0.0, shown)).sum())


def _find_critical_counts(
    flips: NDArray[np.int_], added: Floats | float, alpha: float
) -> NDArray[np.int_]:
    """Find for each number of flips the largest count of the rarer kind that shows a change.

    The kinds are lost and gained answers; the count is -1 if none shows a change. The likelihood
    ratio of no change depends only on the two counts s and l, the smaller one with what is added:
    s log(2 s / (s + l)) + l log(2 l / (s + l)).

    Args:
        flips: Numbers of lost and gained answers together.
        added: How many answers the test adds, for each number of flips or for all.
        alpha: The level of the two-sided test.
    """
    # By halving: `critical` shows a change, and `beyond` shows none.
    critical, beyond = np.full(len(flips), -1), flips // 2 + 1
    while (beyond - critical > 1).any():
        middle = (critical + beyond) // 2
        small = middle + added  # what is added counts against the change
        large = flips - middle
        mean = (small + large) / 2
        nats = scipy.special.xlogy(small, small / mean) + scipy.special.xlogy(large, large / mean)
        is_shown = (small < large) & (2 * nats > scipy.special.ndtri(alpha / 2) ** 2)
        critical = np.where(is_shown, middle, critical)
        beyond = np.where(is_shown, beyond, middle)
    return critical


def n_to_decide(
    difference: Difference, margin: float, alpha: float = ALPHA, budget: float | None = None
) -> int | None:
    """Estimate how many questions show either a change or that it is within the margin.

    The true change is assumed to be as large as measured, and the mean of the questions to be
    normally distributed.

    Args:
        difference: of the questions so far.
        margin: a change below it counts as none.
        alpha: of the two-sided test of a change, and of each of the two one-sided tests against the
            margin.
        budget: if set, questions must instead show on which side of this budget the loss lies.

    Returns:
        The number; None if it cannot be estimated.
    """
    if isnan(difference.spread):
        return None
    if difference.sampling.looks:  # an early look is to decide; early looks share this part
        alpha *= EARLY_SHARE
    # Clusters of 0/1 answers without any flip have no spread. So they are counted as well.
    has_no_flip = difference.is_binary and not difference.changes.any()
    if _has_single_answers(difference) or has_no_flip:
        spread, find_reach = _make_reach_of_counts(difference)
    else:
        spread, find_reach = _make_reach_of_numbers(difference)

    def find_chance_below(end: float, n: int) -> float:
        """Return the chance that the mean of n questions lies below an end."""
        return float(scipy.special.ndtr((end - difference.value) * sqrt(n) / spread))

    def find_power(n: int) -> float:
        """Return the chance that n questions show a change, or that it is within the margin."""
        # A mean between `fall` and `rise` shows no change. If it also lies between `low` and
        # `high`, it shows that the change is within the margin.
        rise = find_reach(n, threshold=0.0, side=1, alpha=alpha / 2)
        fall = -find_reach(n, threshold=0.0, side=-1, alpha=alpha / 2)
        low = max(fall, -margin + find_reach(n, threshold=-margin, side=1, alpha=alpha))
        high = min(rise, margin - find_reach(n, threshold=margin, side=-1, alpha=alpha))
        no_change = find_chance_below(rise, n) - find_chance_below(fall, n)
        retained = find_chance_below(max(low, high), n) - find_chance_below(low, n)
        return 1 - no_change + retained

    def find_budget_power(n: int) -> float:
        """Return the chance that n questions show on which side of the budget the loss lies."""
        assert budget is not None
        within = -budget + find_reach(n, threshold=-budget, side=1, alpha=alpha)
        beyond = -budget - find_reach(n, threshold=-budget, side=-1, alpha=alpha)
        return 1 - (find_chance_below(within, n) - find_chance_below(beyond, n))

    fewest = _find_fewest(find_power if budget is None else find_budget_power)
    if fewest is None:
        return None
    n_of_observation = difference.n / len(difference.observations)  # if clusters stay as large
    return max(difference.n + 1, round(fewest * n_of_observation))


def _make_reach_of_numbers(difference: Difference) -> tuple[float, FindReach]:
    """Return the spread of graded scores, clusters or weighted answers, and their `_find_reach`."""
    find_reach_above = cache(partial(_find_reach, difference))

    def find_reach(n: int, threshold: float, side: int, alpha: float) -> float:
        # To lie below a threshold is, for the negative of all numbers, to lie above its negative.
        return find_reach_above(n, side * threshold, alpha)

    return difference.spread, find_reach


def _make_reach_of_counts(difference: Difference) -> tuple[float, FindReach]:
    """Return the spread of 0/1 answers, and the function that stands for their `_find_reach`.

    Half of a lost and half of a gained answer are added, because few questions without a flip do
    not show how rare flips are. Rare flips are far from normal. So the reach rests on the spread of
    the likeliest distribution whose mean is the threshold.
    """
    test, measured = difference.test, difference.value
    values = np.append(test.values, (-1.0, 1.0))
    counts = np.append(test.counts[-1], (0.5, 0.5))
    spread = sqrt(float(counts @ (values - measured) ** 2) / counts.sum())
    # The shares of answers that flip to each side: -1 for lost answers, 1 for gained ones.
    shares = {side: float(counts[side * values > 0].sum()) / counts.sum() for side in (-1, 1)}
    n_added_by_change_test = float(np.atleast_1d(difference.change_test.added)[-1])

    @cache
    def find_spread(threshold: float) -> float:
        """Return the spread of one answer if the true change were the threshold."""
        bound = test.lowest if measured > threshold else test.highest
        return null_spread(np.append(values, bound) - threshold, np.append(counts, 1 / _MOST))

    def find_reach(n: int, threshold: float, side: int, alpha: float) -> float:
        # `side` is the side of the threshold that the test claims: 1 for a larger mean.
        n_added = n_added_by_change_test
        if test.is_margin and threshold:  # a test against a margin or a budget adds another number
            favorable, adverse = round(shares[side] * n), round(shares[-side] * n)
            n_added = float(added_to_margin(side * threshold, favorable, adverse, n))
        z = -float(scipy.special.ndtri(alpha))
        # Each answer that is added moves the mean of n answers back by about 1 / n.
        return z * find_spread(threshold) / sqrt(n) + n_added / n

    return spread, find_reach


def can_show_within(difference: Difference, budget: float, share: float) -> bool:
    """Whether these questions would show a loss to be within a budget if it were much smaller.

    Args:
        difference: of the questions.
        budget: the largest loss that is allowed.
        share: of the changes of single questions, those that would be left.
    """
    test = difference.test
    counts = np.where(test.values != 0, share, 1.0) * test.counts[-1:]
    n_unchanged = test.counts[-1].sum() - counts.sum()
    values, counts = np.append(test.values, 0.0), np.append(counts, [[n_unchanged]], axis=1)
    smaller = replace(test, values=values, counts=counts, plan=(), n_skipped_looks=0)
    return bool(smaller.p_values_above(np.array([-budget]))[0] < ALPHA)


def _find_fewest(find_power: Callable[[int], float]) -> int | None:
    """Find the smallest number of answers that has the power; None where it is too large."""
    most = 2
    while find_power(most) < POWER:
        most *= 2
        if most > _MOST:
            return None
    return bisect_left(range(most), POWER, lo=most // 2 + 1, key=find_power)
