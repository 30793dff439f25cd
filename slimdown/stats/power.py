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


class FindCriticalMean(Protocol):
    """Finds from which measured mean on a test shows that the true mean lies beyond a threshold."""

    def __call__(self, n: int, threshold: float, side: int, alpha: float) -> float:
        """Return this mean, a share; inf or -inf where no mean is enough.

        Args:
            n: How many answers there are to be.
            threshold: A change, as a share.
            side: 1 if the mean is to be shown above the threshold, -1 if below.
            alpha: The level of the one-sided test.
        """


def minimum_detectable_change(difference: Difference, alpha: float = ALPHA) -> float:
    """Compute the smallest true change that this many questions show; nan if they show none.

    "Show" means with 80 % power. After several looks, the change is one that the last look so far
    shows. The earlier looks, which might have shown it, are left out.

    Args:
        difference: Of the questions.
        alpha: Of the two-sided test, after its correction for other benchmarks.

    Returns:
        The change, a share above 0; one of this size is shown in either direction.
    """
    plan = difference.test.plan
    if isnan(difference.spread):
        return nan
    if plan:  # the last look so far has only its share of the error
        last_look = len(difference.sampling.looks) - 1
        alpha *= float(share_error(plan)[last_look])
    if _has_single_answers(difference):
        return _find_least_change(difference, alpha)
    n = len(difference.observations)
    critical_mean = _find_critical_mean(difference, n, threshold=0.0, alpha=alpha / 2)
    # In 80 % of repetitions, the measured mean lies at most this far below the true one.
    shortfall = float(scipy.special.ndtri(POWER)) * difference.spread / sqrt(n)
    # So a true change of this size has a measured mean above the critical one in 80 % of them.
    smallest = critical_mean + shortfall
    return smallest if smallest <= 1 else nan  # no change of a score is larger than 1


def _has_single_answers(difference: Difference) -> bool:
    """Whether each observation is one 0/1 answer, and all weigh the same."""
    return difference.has_independent_answers and difference.sampling.weights is None


def _find_least_change(difference: Difference, alpha: float) -> float:
    """Find the smallest change of 0/1 answers that is shown with 80 % power; nan if none is.

    The share of answers that flip is taken to be the measured one, after one answer with and one
    without a flip are added, because rare flips may not have been seen. A change that is larger
    than this share needs more flips; then all of them are taken to be to the same side.
    """
    n, is_simple = difference.n, difference.sampling.is_simple
    discordant = (np.count_nonzero(difference.changes) + 1) / (n + 2)
    if change_power(n, 1.0, 1.0, alpha, is_simple) < POWER:  # even if all answers flip to one side
        return nan
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        power = change_power(n, middle, max(discordant, middle), alpha, is_simple)
        low, high = (low, middle) if power >= POWER else (middle, high)
    return high


def _find_critical_mean(difference: Difference, n: int, threshold: float, alpha: float) -> float:
    """Find the smallest mean of n observations that is significantly above a threshold.

    Half of the observations are assumed to lie one spread above their mean, and half one below.

    Args:
        difference: Of the observations so far.
        n: How many there are to be.
        threshold: A change, as a share; for example -0.1 to show that a loss is below 10 points.
        alpha: The level of the one-sided test.

    Returns:
        The mean, a share; inf where none is enough.
    """
    distances = np.geomspace(1e-5, 2.0, 81)  # of the mean from the threshold
    excess = distances[:, None] + np.array([-difference.spread, difference.spread])
    lowest_excess = difference.test.lowest - threshold  # that an observation can have
    p_values = likelihood_p_values(excess, np.array([n / 2, n / 2]), lowest_excess)
    if not (p_values < alpha).any():
        return inf
    first_shown = int(np.argmax(p_values < alpha))
    if first_shown == 0:
        return threshold + float(distances[0])
    # Interpolate between the last distance that is not shown and the first that is. The test makes
    # its p-value from the root of the likelihood ratio, by the normal distribution. The root grows
    # almost in a straight line with the distance, so it is what is interpolated.
    neighbours = slice(first_shown - 1, first_shown + 1)
    roots = -scipy.special.ndtri(np.maximum(p_values[neighbours], 1e-300))
    critical_root = -scipy.special.ndtri(alpha)
    return threshold + float(np.interp(critical_root, roots, distances[neighbours]))


def change_power(
    n: int, change: float, discordant: float, alpha: float, is_simple: bool = True
) -> float:
    """Compute the power: the chance that n 0/1 answers show a change.

    It is the sum, over the numbers of answers that may flip, of the chance of this number times the
    chance that so many flips show a change. Both chances are binomial.

    Args:
        n: How many answers there are.
        change: The true change, a share of them.
        discordant: The share of answers that flip, lost and gained ones together. It is above
            0, and at least as large as the change.
        alpha: The level of the two-sided test.
        is_simple: Whether all questions are of one kind and weigh the same, as in `Sampling`. The
            test is then less cautious: it adds half an answer rather than a whole one.
    """
    # The numbers of flips that occur, without a millionth of their distribution at each end.
    ends = scipy.special.bdtrik([1e-6, 1 - 1e-6], n, discordant) if discordant < 1 else [n, n]
    flips = np.arange(max(0, int(ends[0])), min(n, int(ends[1]) + 1) + 1)
    # The chance of each number: that of at least so many flips, less that of more.
    chances = scipy.special.bdtrc(flips - 1, n, discordant)
    chances -= scipy.special.bdtrc(flips, n, discordant)
    # So many flips show a change if at most the critical count of them are gained answers, or at
    # most as many are lost ones. The critical count is -1 where no count shows a change.
    added = added_to_change(flips, n) if is_simple else PSEUDO_ANSWERS
    critical = _find_critical_counts(flips, added, alpha)
    gained_share = (1 + change / discordant) / 2  # of the flips
    few_gained = scipy.special.bdtr(critical, flips, gained_share)
    few_lost = scipy.special.bdtr(critical, flips, 1 - gained_share)
    return float((chances * np.where(critical >= 0, few_gained + few_lost, 0.0)).sum())


def _find_critical_counts(
    flips: NDArray[np.int_], added: Floats | float, alpha: float
) -> NDArray[np.int_]:
    """Find for each number of flips the critical count of the rarer kind, lost or gained answers.

    That is the largest count at which the test shows a change; -1 if none shows it.

    Without a change, half of the flips are of each kind. So twice the log likelihood ratio is
    2 (s log(s / e) + l log(l / e)), where s is the smaller count with what the test adds, l the
    larger one, and e = (s + l) / 2.

    Args:
        flips: [rows], numbers of lost and gained answers together.
        added: How many answers the test adds, for each number of flips or for all.
        alpha: The level of the two-sided test.
    """
    # If a count shows a change, so do all smaller ones. So the search goes by binary digits, the
    # highest first: from -1 on, a power of two is added where the sum still shows a change.
    critical = np.full(len(flips), -1)
    for exponent in reversed(range(int(flips.max()).bit_length())):
        tried = critical + 2**exponent
        small, large = tried + added, flips - tried  # what is added counts against the change
        expected = (small + large) / 2
        log_ratio = scipy.special.xlogy(small, small / expected)
        log_ratio += scipy.special.xlogy(large, large / expected)
        is_shown = (small < large) & (2 * log_ratio > scipy.special.ndtri(alpha / 2) ** 2)
        critical = np.where(is_shown, tried, critical)
    return critical


def n_to_decide(
    difference: Difference, margin: float, alpha: float = ALPHA, budget: float | None = None
) -> int | None:
    """Estimate how many questions show either a change or that it is within the margin.

    "Show" means with 80 % power. The true change is assumed to be as large as measured, and the
    mean of the questions to be normally distributed.

    Args:
        difference: Of the questions so far.
        margin: A change below it counts as none.
        alpha: Of the two-sided test of a change, and of each of the two one-sided tests against the
            margin.
        budget: If set, questions must instead show on which side of this budget the loss lies.

    Returns:
        The number, more than there are so far; None if it cannot be estimated or is too large.
    """
    if isnan(difference.spread):
        return None
    if difference.sampling.looks:  # an early look is to decide; early looks share this part
        alpha *= EARLY_SHARE
    # Clusters of 0/1 answers without any flip have no spread. So they are counted as well.
    has_no_flip = difference.is_binary and not difference.changes.any()
    is_counted = _has_single_answers(difference) or has_no_flip
    model = _model_counts if is_counted else _model_numbers
    spread, find_critical_mean = model(difference)

    def find_chance_below(mean: float, n: int) -> float:
        """Return the chance that the measured mean of n observations lies below this one."""
        return float(scipy.special.ndtr((mean - difference.value) * sqrt(n) / spread))

    def find_power(n: int) -> float:
        """Return the chance that n observations show a change, or that it is within the margin."""
        # A measured mean from `fall` to `rise` shows no change.
        rise = find_critical_mean(n, threshold=0.0, side=1, alpha=alpha / 2)
        fall = find_critical_mean(n, threshold=0.0, side=-1, alpha=alpha / 2)
        changed = 1 - (find_chance_below(rise, n) - find_chance_below(fall, n))
        # If it also lies from `low` to `high`, it shows that the change is within the margin. With
        # few observations, `low` is above `high`: no mean shows that.
        low = max(fall, find_critical_mean(n, threshold=-margin, side=1, alpha=alpha))
        high = min(rise, find_critical_mean(n, threshold=margin, side=-1, alpha=alpha))
        retained = find_chance_below(max(low, high), n) - find_chance_below(low, n)
        return changed + retained

    def find_budget_power(n: int) -> float:
        """Return the chance that n observations show on which side of the budget the loss lies."""
        assert budget is not None
        within = find_critical_mean(n, threshold=-budget, side=1, alpha=alpha)
        beyond = find_critical_mean(n, threshold=-budget, side=-1, alpha=alpha)
        # Only a measured mean between the two leaves the side open.
        return 1 - (find_chance_below(within, n) - find_chance_below(beyond, n))

    fewest = _find_fewest(find_power if budget is None else find_budget_power)
    if fewest is None:
        return None
    n_of_observation = difference.n / len(difference.observations)  # if clusters stay as large
    return max(difference.n + 1, round(fewest * n_of_observation))


def _model_numbers(difference: Difference) -> tuple[float, FindCriticalMean]:
    """Return the spread and the critical means of graded scores, clusters or weighted answers."""
    find_mean_above = cache(partial(_find_critical_mean, difference))

    def find_critical_mean(n: int, threshold: float, side: int, alpha: float) -> float:
        # To lie below a threshold is, for the negative of all numbers, to lie above its negative.
        return side * find_mean_above(n, side * threshold, alpha)

    return difference.spread, find_critical_mean


def _model_counts(difference: Difference) -> tuple[float, FindCriticalMean]:
    """Return the spread of one 0/1 answer, and the function that finds critical means of answers.

    Half of a lost and half of a gained answer are added, because few questions without a flip do
    not show how rare flips are. The spread of rare flips depends on the true change. So a critical
    mean rests on the spread that answers have if the true change is the threshold.
    """
    test, measured = difference.test, difference.value
    values = np.append(test.values, (-1.0, 1.0))
    counts = np.append(test.counts[-1], (0.5, 0.5))
    spread = sqrt(float(counts @ (values - measured) ** 2) / counts.sum())
    # The shares of answers that flip to each side: -1 for lost answers, 1 for gained ones.
    flip_shares = {side: float(counts[side * values > 0].sum()) / counts.sum() for side in (-1, 1)}
    n_added_by_change_test = float(np.atleast_1d(difference.change_test.added)[-1])

    @cache
    def find_null_spread(threshold: float) -> float:
        """Return the spread of one answer if the true change were the threshold."""
        # Weighted answers can change by more than 1. So the largest possible change in the
        # direction of the threshold is added, too, as a millionth of an answer.
        bound = test.lowest if measured > threshold else test.highest
        return null_spread(np.append(values, bound) - threshold, np.append(counts, 1e-6))

    def find_critical_mean(n: int, threshold: float, side: int, alpha: float) -> float:
        n_added = n_added_by_change_test
        if test.is_margin and threshold != 0:  # the test against a margin or a budget
            favorable, adverse = round(flip_shares[side] * n), round(flip_shares[-side] * n)
            n_added = float(added_to_margin(side * threshold, favorable, adverse, n))
        z = -float(scipy.special.ndtri(alpha))
        # Each answer that is added moves the mean of n answers back by about 1 / n. So the measured
        # mean must lie as much further from the threshold.
        distance = z * find_null_spread(threshold) / sqrt(n) + n_added / n
        return threshold + side * distance

    return spread, find_critical_mean


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
