"""Power: how large a change some questions show, and how many questions a change needs.

Changes, margins and spreads are shares. "Show" means in four of five repetitions: 80 % power.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import inf, isnan, nan, sqrt

import numpy as np
import scipy

from slimdown.stats.estimates import Difference
from slimdown.stats.likelihood import (
    ALPHA,
    PSEUDO_ANSWERS,
    added_to_change,
    added_to_margin,
    likelihood_p_values,
    null_spread,
)
from slimdown.stats.sequential import EARLY_SHARE, share_error

# Takes a number of answers, a threshold, the side of it that is claimed, and a level.
FindReach = Callable[[int, float, int, float], float]
POWER = 0.8
_MOST = 10**6  # questions; larger numbers are not named


def minimum_detectable_change(difference: Difference, alpha: float = ALPHA) -> float:
    """Compute the smallest true change that this many questions show; nan if they show none.

    The share of answers that change is the measured one, or more if the change itself needs more.
    After looks, only the last look counts.

    Args:
        difference: of the questions.
        alpha: of the two-sided test, after its correction for other benchmarks.
    """
    d, test = difference, difference.test
    if isnan(d.spread):
        return nan
    if test.plan:
        alpha *= float(share_error(test.plan)[len(d.sampling.looks) - 1])
    if _is_plain(d):
        discordant = (np.count_nonzero(d.changes) + 1) / (d.n + 2)
        is_simple = d.sampling.is_simple
        if change_power(d.n, 1.0, 1.0, alpha, is_simple) < POWER:
            return nan
        low, high = 0.0, 1.0
        for _ in range(14):
            middle = (low + high) / 2
            power = change_power(d.n, middle, max(discordant, middle), alpha, is_simple)
            low, high = (low, middle) if power >= POWER else (middle, high)
        return high
    n = len(d.observations)
    smallest = _find_reach(d, n, 0.0, alpha / 2) + float(
        scipy.special.ndtri(POWER)
    ) * d.spread / sqrt(n)
    return smallest if smallest <= 1 else nan


def _is_plain(d: Difference) -> bool:
    """Whether each observation is one 0/1 answer, and all weigh the same."""
    return d.has_independent_answers and d.sampling.weights is None


def _find_reach(d: Difference, n: int, claimed: float, alpha: float) -> float:
    """Find how far the mean of n observations must lie from a threshold to be shown beyond it.

    The observations are taken to be as many above as below their mean, by their spread.

    Args:
        d: Of the observations so far.
        n: How many there are to be.
        claimed: The threshold of a one-sided test, from the side of the claim: below 0 a change is
            claimed to be within a margin.
        alpha: The level.

    Returns:
        The distance; inf where none is enough.
    """
    distances = np.geomspace(1e-5, 2.0, 81)
    excess = distances[:, None] + np.array([-d.spread, d.spread])
    p = likelihood_p_values(excess, np.array([n / 2, n / 2]), d.test.lowest - claimed)
    shown = int(np.argmax(p < alpha))
    if not p[shown] < alpha:
        return inf
    if shown == 0:
        return float(distances[0])
    roots = scipy.special.ndtri(np.maximum(p[shown - 1 : shown + 1], 1e-300))
    share = (roots[0] - scipy.special.ndtri(alpha)) / (roots[0] - roots[1])
    return float(distances[shown - 1] + share * (distances[shown] - distances[shown - 1]))


def change_power(
    n: int, change: float, discordant: float, alpha: float, is_simple: bool = True
) -> float:
    """Compute how often n 0/1 answers show a change if a share `discordant` of them changes.

    The likelihood ratio of no change depends only on the lost and gained answers l and g, each
    with what is added: l log(2 l / (l + g)) + g log(2 g / (l + g)). `is_simple` is that of
    `Sampling`.
    """
    ends = scipy.special.bdtrik([1e-6, 1 - 1e-6], n, discordant) if discordant < 1 else [n, n]
    changed = np.arange(max(0, int(ends[0])), min(n, int(ends[1]) + 1) + 1)
    # the largest count of the rarer kind that still shows a change; -1 if none does
    critical, beyond = np.full(len(changed), -1), changed // 2 + 1
    added = added_to_change(changed, n) if is_simple else PSEUDO_ANSWERS
    while (beyond - critical > 1).any():
        middle = (critical + beyond) // 2
        small, large = middle + added, changed - middle
        ratios = small * 2 / (small + large), large * 2 / (small + large)
        nats = scipy.special.xlogy(small, ratios[0]) + scipy.special.xlogy(large, ratios[1])
        is_shown = (small < large) & (2 * nats > scipy.special.ndtri(alpha / 2) ** 2)
        critical = np.where(is_shown, middle, critical)
        beyond = np.where(is_shown, beyond, middle)
    share = (1 + change / discordant) / 2
    shown = scipy.special.bdtr(critical.astype(float), changed, share)
    shown += scipy.special.bdtrc((changed - critical - 1).astype(float), changed, share)
    log_chances = -np.log(n + 1) - scipy.special.betaln(n - changed + 1, changed + 1)
    log_chances += scipy.special.xlogy(changed, discordant)
    log_chances += scipy.special.xlog1py(n - changed, -discordant)
    return float((np.exp(log_chances) * np.where(critical < 0, 0.0, shown)).sum())


def n_to_decide(
    difference: Difference, margin: float, alpha: float = ALPHA, budget: float | None = None
) -> int | None:
    """Estimate how many questions show either a change or that it is within the margin.

    The true change is assumed to be as large as measured, and the mean to be normal. A change stays
    undecided between the largest one that is within the margin and the smallest one that is shown.
    More questions close this gap.

    Args:
        difference: of the questions so far.
        margin: a change below it counts as none.
        alpha: of the two-sided test of a change, and of each of the two one-sided tests against the
            margin.
        budget: if set, questions must instead show on which side of this budget the loss lies.

    Returns:
        The number; None if it cannot be estimated.
    """
    d = difference
    if isnan(d.spread):
        return None
    if d.sampling.looks:
        alpha *= EARLY_SHARE
    is_counted = _is_plain(d) or (d.is_binary and not d.changes.any())
    spread, find_reach = _plan_counts(d) if is_counted else _plan_numbers(d)

    def power(n: int) -> float:
        shown = find_reach(n, 0.0, 1, alpha / 2), -find_reach(n, 0.0, -1, alpha / 2)
        high = min(shown[0], margin - find_reach(n, margin, -1, alpha))
        low = max(shown[1], -margin + find_reach(n, -margin, 1, alpha))
        ends = np.array([shown[1], shown[0], low, max(low, high)])
        if budget is not None:
            within = find_reach(n, -budget, 1, alpha)
            beyond = find_reach(n, -budget, -1, alpha)
            ends = np.array([-budget - beyond, -budget + within, -budget, -budget])
        chances = scipy.special.ndtr((ends - d.value) * sqrt(n) / spread)
        return float(1 - (chances[1] - chances[0]) + (chances[3] - chances[2]))

    if (fewest := _find_fewest(power)) is None:
        return None
    return max(d.n + 1, round(fewest * d.n / len(d.observations)))  # if clusters stay as large


def _plan_numbers(d: Difference) -> tuple[float, FindReach]:
    """Return the spread of graded scores, clusters or weighted answers, and their `_find_reach`."""

    @cache
    def find(n: int, claimed: float, alpha: float) -> float:
        return _find_reach(d, n, claimed, alpha)

    return d.spread, lambda n, threshold, side, alpha: find(n, side * threshold, alpha)


def _plan_counts(d: Difference) -> tuple[float, FindReach]:
    """Return the spread of 0/1 answers, and what `_find_reach` is for them.

    One more lost and gained answer, half of each, stand for flips: few questions without one do not
    tell how rare they are. Such a change is not near normal in small numbers, so the spread is that
    of the likeliest distribution at the threshold.
    """
    values = np.append(d.test.values, (-1.0, 1.0))
    counts = np.append(d.test.counts[-1], (0.5, 0.5))
    spread = sqrt(float(counts @ (values - d.value) ** 2) / counts.sum())
    shares = {side: float(counts[side * values > 0].sum()) / counts.sum() for side in (-1, 1)}
    added_to_any = float(np.atleast_1d(d.change_test.added)[-1])

    @cache
    def spread_at(threshold: float) -> float:
        sign, end = (1, d.test.lowest) if d.value > threshold else (-1, -d.test.highest)
        # with so many answers, the one that is added hardly counts
        excess, end = sign * (values - threshold), end - sign * threshold
        return null_spread(excess, _MOST * counts, end)

    def find_reach(n: int, threshold: float, side: int, alpha: float) -> float:
        added = added_to_any
        if d.test.is_margin and threshold:
            favorable, adverse = (round(shares[s] * n) for s in (side, -side))
            added = float(added_to_margin(side * threshold, favorable, adverse, n))
        z = -float(scipy.special.ndtri(alpha))
        return z * spread_at(threshold) / sqrt(n) + added / n

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


def _find_fewest(power: Callable[[int], float]) -> int | None:
    """Find the smallest number of answers that has the power; None where it is too large."""
    most = 2
    while power(most) < POWER:
        most *= 2
        if most > _MOST:
            return None
    return bisect_left(range(most), POWER, lo=most // 2 + 1, key=power)
